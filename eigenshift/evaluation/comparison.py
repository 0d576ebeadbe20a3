"""Compare arms on the same prompts, seeds and texts: every metric with its interval.

Reads scored continuations and fluency sums; writes `evaluations.parquet` (`schemas.EVALUATIONS`)
and the paired differences between arms, `arm_pairs.parquet` (`schemas.ARM_PAIRS`).
Metrics: toxicity rate (mean over prompts of the share of continuations above the threshold), mean
toxicity, expected maximum, share of prompts with any; corpus and sentence perplexity, KL to base,
changed argmax tokens; distinct-n; degeneration (`degeneration.py`); and, against base, differences
and both TPH forms. Toxicity and degeneration also per slice (`slices.py`), toxicity under further
scorers, fluency per language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.arms import (
    BASE_ARM,
    RANDOM_ARM,
    SUPPRESSION_ARM,
    find_point,
    join_arm,
)
from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.agreement import ScoredArms, read_scores
from eigenshift.evaluation.arm_pairs import compare_pairs
from eigenshift.evaluation.bootstrap import Estimate, average, draw_counts, summarise
from eigenshift.evaluation.degeneration import compare_degeneration, tabulate_degeneration
from eigenshift.evaluation.metric_table import ALL_SLICE, describe_metric
from eigenshift.evaluation.permutation import compute_p_value
from eigenshift.evaluation.slices import find_slices, name_scorer_slice
from eigenshift.evaluation.stages import ComparisonInputs, ComparisonKey
from eigenshift.settings import EvaluationSettings
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

MIN_SLICE_TEXTS = 5
CONTROLS = (RANDOM_ARM, SUPPRESSION_ARM)
NO_TEXTS = schemas.FLUENCY.empty_table()
INDOMAIN_METRICS = ("perplexity", "perplexity_change", "kl_to_base")
DISTINCT_ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class ArmEvidence:
    """What one arm generated and how it was judged; the tables' rows are in the same order."""

    continuations: pa.Table
    scores: pa.Table


@dataclass(frozen=True)
class PromptTable:
    """Per-prompt numbers of all arms, aligned: arrays of shape (prompt,)."""

    prompts: list[dict[str, Any]]
    by_arm: dict[str, dict[str, FloatArray]]
    n_unscored: dict[str, int]


def compare_arms(
    prompts: pa.Table,
    evidence: Mapping[str, ArmEvidence],
    fluency: pa.Table,
    indomain: pa.Table,
    settings: EvaluationSettings,
    *,
    scorer: str,
    toxic_threshold: float,
    workspace: Workspace,
    further: Sequence[ScoredArms] = (),
) -> None:
    """Write all metrics of all arms.

    Args:
        prompts: The evaluation prompts (`schemas.PROMPTS`).
        evidence: Arm -> its continuations and scores; must hold "base".
        fluency: `schemas.FLUENCY` rows of the same arms on neutral texts.
        indomain: The same on harmless texts of the domain; may be empty.
        settings: Bootstrap.
        scorer: Name for the table.
        toxic_threshold: A probability above this counts as toxic.
        workspace: Receives `evaluations.parquet`.
        further: What other scorers say of the same continuations.

    Raises:
        EvaluationError: An arm lacks prompts that another has, or no neutral text was measured.
    """
    if not fluency.num_rows:
        raise EvaluationError(
            "neutral texts: expected some of two tokens or more for evaluation, found none. They "
            "are too short, or evaluation.max_texts is; add neutral texts or raise it."
        )
    table = tabulate_prompts(prompts, evidence, toxic_threshold)
    slices = find_slices(table.prompts, toxic_threshold)
    rows: list[dict[str, Any]] = []
    pairs = compare_pairs(_take_rates(table), settings)
    ids = [row["prompt_id"] for row in table.prompts]
    degenerate = {
        arm: tabulate_degeneration(found.continuations, ids, settings)
        for arm, found in evidence.items()
    }
    for slice_name, members in slices.items():
        rows.extend(compare_toxicity(table, members, slice_name, settings, scorer))
        rows.extend(compare_degeneration(degenerate, members, slice_name, settings))
    for verdicts in further:
        judged = {
            arm: ArmEvidence(found.continuations, verdicts.scores[arm])
            for arm, found in evidence.items()
        }
        other = tabulate_prompts(prompts, judged, verdicts.toxic_threshold)
        name = name_scorer_slice(verdicts.scorer)
        rows.extend(compare_toxicity(other, slices[ALL_SLICE], name, settings, verdicts.scorer))
        pairs += compare_pairs(_take_rates(other), settings, name)
    rows.extend(_compare_fluency(fluency, settings, "language"))
    if indomain.num_rows:
        rows.extend(_compare_fluency(indomain, settings, "text", suffix="_indomain"))
    rows.extend(_weigh_cost(table, fluency, settings, scorer))
    rows.extend(_describe_continuations(table, evidence, scorer))
    workspace.write_rows(tables.EVALUATIONS.file, rows, schemas.EVALUATIONS)
    workspace.write_rows(tables.ARM_PAIRS.file, pairs, schemas.ARM_PAIRS)
    workspace.facts = {"arms": sorted(evidence), "n_prompts": len(table.prompts)}


def _take_rates(table: PromptTable) -> dict[str, FloatArray]:
    return {arm: metrics["toxicity_rate"] for arm, metrics in table.by_arm.items()}


def tabulate_prompts(
    prompts: pa.Table, evidence: Mapping[str, ArmEvidence], toxic_threshold: float
) -> PromptTable:
    """Reduce continuations to one number per prompt, arm and metric (NaN where none was scored)."""
    described = {row["prompt_id"]: row for row in prompts.to_pylist()}
    ids = sorted(described)
    by_arm, n_unscored = {}, {}
    for arm, found in evidence.items():
        probabilities: dict[str, list[float]] = {prompt_id: [] for prompt_id in ids}
        missing = 0
        for row in found.scores.select(["prompt_id", "toxicity_probability"]).to_pylist():
            if row["toxicity_probability"] is None:
                missing += 1
            elif row["prompt_id"] in probabilities:
                probabilities[row["prompt_id"]].append(row["toxicity_probability"])
        if set(found.continuations["prompt_id"].to_pylist()) != set(ids):
            raise EvaluationError(
                f"arm {arm}: expected continuations of {len(ids)} evaluation prompts, found "
                "another set. The shards belong to different settings; start the run again."
            )
        values = [np.array(probabilities[prompt_id]) for prompt_id in ids]
        by_arm[arm] = {
            "toxicity_rate": _per_prompt(values, lambda v: float((v > toxic_threshold).mean())),
            "toxicity_mean": _per_prompt(values, lambda v: float(v.mean())),
            "expected_max_toxicity": _per_prompt(values, lambda v: float(v.max())),
            "any_toxic_share": _per_prompt(values, lambda v: float((v > toxic_threshold).any())),
        }
        n_unscored[arm] = missing
    return PromptTable([described[prompt_id] for prompt_id in ids], by_arm, n_unscored)


def draw_fluency(
    fluency: pa.Table, settings: EvaluationSettings
) -> dict[str, dict[str, tuple[FloatArray, int]]]:
    """Bootstrap draws of each arm's fluency metrics and the number of texts behind them."""
    counts: FloatArray | None = None
    drawn: dict[str, dict[str, tuple[FloatArray, int]]] = {}
    for arm in sorted(set(fluency["arm"].to_pylist())):
        mask = pa.compute.equal(fluency["arm"], arm)
        rows = fluency.filter(mask).sort_by("sample_id")
        n_tokens = rows["n_tokens"].to_numpy().astype(np.float64)
        per_token = {
            metric: rows[column].to_numpy().astype(np.float64) / n_tokens
            for metric, column in (
                ("nll", "nll"),
                ("kl_to_base", "kl_to_base"),
                ("changed_argmax_share", "n_changed_argmax"),
            )
        }
        if counts is None:
            counts = draw_counts(len(rows), settings.n_bootstrap, settings.seed + 1)
        drawn[arm] = {
            "perplexity": (np.exp(average(per_token["nll"], counts, n_tokens)), len(rows)),
            "perplexity_sentence": (average(np.exp(per_token["nll"]), counts), len(rows)),
            "kl_to_base": (average(per_token["kl_to_base"], counts, n_tokens), len(rows)),
            "changed_argmax_share": (
                average(per_token["changed_argmax_share"], counts, n_tokens),
                len(rows),
            ),
        }
    return drawn


def compute_tph(
    reduction: FloatArray, perplexity_ratio: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Both trade-off forms (how-it-works.md section 2).

    Args:
        reduction: T, relative toxicity reduction; 0 or less gives 0.
        perplexity_ratio: Patched over base perplexity.

    Returns:
        `tph` = 2 T R / (T + R) with R = base / patched capped at 1, and `tph_paper` with
        R = 1 / (1 + |relative change|); NaN where T or R is unknown (nothing toxic to reduce).
    """
    t = np.clip(np.where(np.isfinite(reduction), reduction, np.nan), 0.0, None)
    forms = []
    for r in (
        np.minimum(1.0, 1.0 / perplexity_ratio),
        1.0 / (1.0 + np.abs(perplexity_ratio - 1.0)),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            forms.append(np.where(t + r == 0, 0.0, 2 * t * r / (t + r)))
    return forms[0], forms[1]


def measure_distinct(continuations: pa.Table) -> dict[int, float | None]:
    """Distinct-n: different token n-grams / all token n-grams, over all continuations."""
    sequences = continuations["token_ids"].to_pylist()
    shares: dict[int, float | None] = {}
    for order in DISTINCT_ORDERS:
        grams = [gram for tokens in sequences for gram in _iterate_grams(tokens, order)]
        shares[order] = len(set(grams)) / len(grams) if grams else None
    return shares


def compare_toxicity(
    table: PromptTable,
    members: Sequence[int],
    slice_name: str,
    settings: EvaluationSettings,
    scorer: str,
) -> Iterator[dict[str, Any]]:
    """Toxicity metrics of one slice; paired ones against base and controls of the same point.

    Args:
        table: Numbers per prompt.
        members: Places of the slice's prompts.
        slice_name: Its name.
        settings: Bootstrap.
        scorer: Name for the rows.
    """
    counts = draw_counts(len(members), settings.n_bootstrap, settings.seed)
    for arm, metrics in table.by_arm.items():
        for metric, values in metrics.items():
            draws = average(values[list(members)], counts)
            estimate = summarise(draws, settings.confidence)
            yield describe_metric(arm, scorer, metric, slice_name, estimate, len(members))
            if arm == BASE_ARM or metric != "toxicity_rate":
                continue
            base = average(table.by_arm[BASE_ARM][metric][list(members)], counts)
            differences = (values - table.by_arm[BASE_ARM][metric])[list(members)]
            p_value = Estimate(compute_p_value(differences, settings.seed), None, None)
            yield describe_metric(
                arm, scorer, "toxicity_p_value", slice_name, p_value, len(members)
            )
            paired_draws = {
                "toxicity_rate_difference": draws - base,
                "toxicity_reduction": _divide(base - draws, base),
            }
            for control in CONTROLS:
                other = join_arm(control, find_point(arm))
                if other in table.by_arm and arm != other:
                    others = average(table.by_arm[other][metric][list(members)], counts)
                    paired_draws[f"toxicity_rate_minus_{control}"] = draws - others
            for name, paired in paired_draws.items():
                estimate = summarise(paired, settings.confidence)
                yield describe_metric(arm, scorer, name, slice_name, estimate, len(members))


def _compare_fluency(
    fluency: pa.Table, settings: EvaluationSettings, what: str, *, suffix: str = ""
) -> Iterator[dict[str, Any]]:
    """Fluency of each arm and its change against base: on all texts, then part by part.

    Args:
        fluency: `schemas.FLUENCY` rows.
        settings: Bootstrap.
        what: Parts are named by: a language, or a kind of text.
        suffix: Of the metrics' names.
    """
    slices = {ALL_SLICE: fluency}
    parts = sorted(set(fluency["language"].to_pylist()))
    if len(parts) > 1:
        for part in parts:
            texts = fluency.filter(pa.compute.equal(fluency["language"], part))
            if len(set(texts["sample_id"].to_pylist())) >= MIN_SLICE_TEXTS:
                slices[f"{what}={part}"] = texts
    for slice_name, texts in slices.items():
        drawn = draw_fluency(texts, settings)
        base, _ = drawn[BASE_ARM]["perplexity"]
        for arm, metrics in drawn.items():
            changes = {} if arm == BASE_ARM else {"perplexity_change": _compare(metrics, base)}
            for metric, (draws, n_texts) in {**metrics, **changes}.items():
                if suffix and metric not in INDOMAIN_METRICS:
                    continue
                estimate = summarise(draws, settings.confidence)
                yield describe_metric(arm, None, f"{metric}{suffix}", slice_name, estimate, n_texts)


def _compare(
    metrics: Mapping[str, tuple[FloatArray, int]], base: FloatArray
) -> tuple[FloatArray, int]:
    perplexity, n_texts = metrics["perplexity"]
    return perplexity / base - 1.0, n_texts


def _weigh_cost(
    table: PromptTable, fluency: pa.Table, settings: EvaluationSettings, scorer: str
) -> Iterator[dict[str, Any]]:
    """Both TPH forms of each arm against base."""
    n_prompts = len(table.prompts)
    counts = draw_counts(n_prompts, settings.n_bootstrap, settings.seed)
    base_rate = average(table.by_arm[BASE_ARM]["toxicity_rate"], counts)
    drawn = draw_fluency(fluency, settings)
    base_perplexity, _ = drawn[BASE_ARM]["perplexity"]
    for arm in table.by_arm:
        if arm == BASE_ARM:
            continue
        rate = average(table.by_arm[arm]["toxicity_rate"], counts)
        perplexity, _ = drawn[arm]["perplexity"]
        forms = compute_tph(_divide(base_rate - rate, base_rate), perplexity / base_perplexity)
        for metric, draws in zip(("tph", "tph_paper"), forms, strict=True):
            estimate = summarise(draws, settings.confidence)
            yield describe_metric(arm, scorer, metric, ALL_SLICE, estimate, n_prompts)


def _describe_continuations(
    table: PromptTable, evidence: Mapping[str, ArmEvidence], scorer: str
) -> Iterator[dict[str, Any]]:
    """How varied and long each arm's continuations are, and how many have no score."""
    for arm, found in evidence.items():
        n_rows = found.continuations.num_rows
        for order, share in measure_distinct(found.continuations).items():
            estimate = Estimate(share, None, None)
            yield describe_metric(arm, None, f"distinct_{order}", ALL_SLICE, estimate, n_rows)
        lengths = found.continuations["token_ids"].combine_chunks().value_lengths()
        mean_length = Estimate(float(np.mean(lengths.to_numpy())), None, None)
        yield describe_metric(arm, None, "tokens_mean", ALL_SLICE, mean_length, n_rows)
        unscored = Estimate(table.n_unscored[arm] / max(1, n_rows), None, None)
        yield describe_metric(arm, scorer, "unscored_share", ALL_SLICE, unscored, n_rows)


def _per_prompt(values: Sequence[FloatArray], reduce: Any) -> FloatArray:
    return np.array([reduce(found) if len(found) else np.nan for found in values])


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator / denominator)


def _iterate_grams(tokens: Sequence[int], order: int) -> Iterator[tuple[int, ...]]:
    for first in range(len(tokens) - order + 1):
        yield tuple(tokens[first : first + order])


def carry_out(
    inputs: ComparisonInputs, key: ComparisonKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `compare_arms`."""
    read = bench.artifacts.read_shards
    deciding = read_scores(bench.artifacts, inputs.judged, key)
    evidence = {
        arm: ArmEvidence(read(shards, tables.CONTINUATIONS.file), deciding.scores[arm])
        for arm, shards in inputs.continuations.items()
    }
    compare_arms(
        bench.artifacts.read_files(inputs.prompts),
        evidence,
        read(inputs.fluency, tables.FLUENCY.file),
        read(inputs.indomain, tables.FLUENCY.file) if inputs.indomain else NO_TEXTS,
        key.evaluation,
        scorer=key.scorer,
        toxic_threshold=key.toxic_threshold,
        workspace=workspace,
        further=[
            read_scores(bench.artifacts, scores, scorer)
            for scores, scorer in zip(inputs.further, key.further, strict=True)
        ],
    )
