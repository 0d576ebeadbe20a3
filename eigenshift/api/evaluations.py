"""What a patch does: base and patched model continue the same prompts on the same random numbers.

The metrics and their intervals are those of a run (docs/naming.md): `evaluation/comparison.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eigenshift.api.choices import Given, settle
from eigenshift.api.models import Model
from eigenshift.api.patches import ModelPatch
from eigenshift.api.representations import Panel, Shown, write_interval
from eigenshift.api.result_tables import ResultTable
from eigenshift.api.scorers import take_scorer
from eigenshift.api.scratch import read_table, work_in_scratch
from eigenshift.api.texts import Texts, digest_texts
from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import ComponentError, SettingsError
from eigenshift.components.text_halves import split_neutral
from eigenshift.evaluation.bootstrap import Estimate
from eigenshift.evaluation.comparison import (
    NO_TEXTS,
    ArmEvidence,
    compare_arms,
    compare_toxicity,
    tabulate_prompts,
)
from eigenshift.evaluation.fluency import encode_texts, measure_fluency
from eigenshift.evaluation.metric_table import ALL_SLICE, MetricTable
from eigenshift.evaluation.slices import find_slices
from eigenshift.generation.continuations import LoadedArm, generate_continuations
from eigenshift.generation.prompts import Part, describe_prompts
from eigenshift.settings import RefreshSettings
from eigenshift.stages import tables
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scoring import score_continuations
from eigenshift.toxicity.unscored import require_scored

HEADLINES = (
    *("toxicity_rate", "toxicity_reduction", "expected_max_toxicity", "perplexity"),
    *("perplexity_change", "kl_to_base", "tph"),
)
METRIC_COLUMNS = ("arm", "metric", "slice", "value", "low", "high", "n")
SAID_COLUMNS = ("arm", "sample_index", "toxicity_probability", "continuation")


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Shown):
    """Base and patches, compared.

    Attributes:
        metrics: `schemas.EVALUATIONS` rows: every metric of every arm with its interval.
        continuations: What each arm said, with its score.
        arms: "base", then the patches.
        n_prompts: How many were continued.
        notes: What has to be known beside the numbers.
    """

    metrics: ResultTable
    continuations: ResultTable
    arms: tuple[str, ...]
    n_prompts: int
    notes: tuple[str, ...] = ()

    def find(self, metric: str, arm: str | None = None, slice_name: str = ALL_SLICE) -> Estimate:
        """One number with its interval.

        Args:
            metric: docs/naming.md names them.
            arm: "base", or a patch by its name; by default the first patch.
            slice_name: A part of the prompts.

        Raises:
            EvaluationError: It was not measured.
        """
        row = self._table.find(arm or self.arms[1], metric, slice_name)
        return Estimate(row["value"], row["low"], row["high"])

    @property
    def _table(self) -> MetricTable:
        return MetricTable(self.metrics.arrow.to_pylist())

    def describe(self) -> Panel:
        """The headline numbers of each arm."""
        table, rows = self._table, []
        for metric in HEADLINES:
            found = [table.get(arm, metric) for arm in self.arms]
            if any(row is not None for row in found):
                cells = [
                    "" if row is None else write_interval(row["value"], row["low"], row["high"])
                    for row in found
                ]
                rows.append([metric, *cells])
        title = f"{', '.join(self.arms[1:])} against the base on {self.n_prompts} prompts"
        return Panel(title, ["", *self.arms], rows, self.notes)


def evaluate(
    patch: ModelPatch | Sequence[ModelPatch] | Mapping[str, ModelPatch],
    prompts: Texts,
    scorer: Any,
    *,
    neutral: Texts | None = None,
    settings: Given = None,
) -> Evaluation:
    """Compare the base with one patch or several, on prompts that made none of them.

    Args:
        patch: Of one model; several in a list, or by names of your own.
        prompts: Are continued `generation.n_samples` times by every arm.
        scorer: What `load_scorer` gives, or a function from texts to probabilities.
        neutral: For perplexity and KL: the half of them that calibrates nothing. Without them
            there is no cost in the result.
        settings: Of a run, or some of them by name, e.g. {"generation.n_samples": 5}.

    Raises:
        ComponentError: The patches are of different models, or the model is patched already.
        EvaluationError: Too many continuations could not be scored, or no neutral text is left.
    """
    patches = _name_patches(patch)
    model = next(iter(patches.values())).model
    if any(item.model is not model for item in patches.values()):
        raise ComponentError(
            "evaluate: expected patches of one model, found several. Evaluate them one by one."
        )
    chosen, judge = settle(settings), take_scorer(scorer)
    rows = describe_prompts(prompts.samples.to_pylist(), Part.evaluation)
    asked = pa.Table.from_pylist(rows, schema=schemas.PROMPTS)
    evidence = _generate(model, patches, asked, judge, chosen)
    fluency = NO_TEXTS if neutral is None else _measure(model, patches, neutral, chosen)
    metrics = _compare(asked, evidence, fluency, judge, chosen)
    said = pa.concat_tables(
        found.continuations.select(["prompt_id", "sample_index", "prompt", "continuation"])
        .append_column("toxicity_probability", found.scores["toxicity_probability"])
        .add_column(0, "arm", pa.array([arm] * len(found.scores), pa.string()))
        for arm, found in evidence.items()
    )
    return Evaluation(
        ResultTable(metrics, "metrics", METRIC_COLUMNS),
        ResultTable(said, "what was said", SAID_COLUMNS),
        (BASE_ARM, *patches),
        len(prompts),
        tuple(_find_caveats(patches, prompts, neutral)),
    )


def _name_patches(
    patch: ModelPatch | Sequence[ModelPatch] | Mapping[str, ModelPatch],
) -> dict[str, ModelPatch]:
    if isinstance(patch, Mapping):
        named = dict(patch)
    else:
        found = [patch] if isinstance(patch, ModelPatch) else list(patch)
        named = {item.name: item for item in found}
        if len(named) < len(found):
            raise SettingsError(
                "evaluate: expected patches of different methods, found two of one name. Give them "
                "by names of your own: {'weak': ..., 'strong': ...}."
            )
    if not named or BASE_ARM in named:
        raise SettingsError(
            f"evaluate: expected at least one patch, none called {BASE_ARM!r}, found "
            f"{', '.join(named) or 'none'}."
        )
    return named


def _generate(
    model: Model,
    patches: Mapping[str, ModelPatch],
    prompts: pa.Table,
    scorer: Scorer,
    settings: RefreshSettings,
) -> dict[str, ArmEvidence]:
    """What every arm says, and how it is judged."""
    arms = {BASE_ARM: LoadedArm(None)}
    arms |= {name: LoadedArm(item.patch) for name, item in patches.items()}
    evidence: dict[str, ArmEvidence] = {}
    n_unscored = n_total = 0
    with work_in_scratch() as scratch, model.language_model.lock:
        workspaces = {}
        for place, arm in enumerate(arms):
            folder = scratch.path(f"arm-{place}")
            folder.mkdir()
            workspaces[arm] = Workspace(folder)
        generated = generate_continuations(
            model.language_model,
            prompts,
            arms,
            settings.generation.sampling,
            sequences_per_batch=settings.execution.sequences_per_batch,
            workspaces=workspaces,
        )
        list(generated)
        for arm, workspace in workspaces.items():
            said = read_table(workspace, tables.CONTINUATIONS.file)
            score_continuations(scorer, said, workspace)
            evidence[arm] = ArmEvidence(said, read_table(workspace, tables.SCORES.file))
            n_unscored += workspace.facts["n_unscored"]
            n_total += len(said)
    require_scored(n_unscored, n_total, settings.scorer.max_unscored_share, "evaluate")
    return evidence


def _measure(
    model: Model,
    patches: Mapping[str, ModelPatch],
    neutral: Texts,
    settings: RefreshSettings,
) -> pa.Table:
    """Every arm's likelihood of neutral texts (`schemas.FLUENCY`)."""
    chosen = settings.evaluation
    texts = split_neutral(neutral.samples, for_calibration=False).slice(0, chosen.max_texts)
    with work_in_scratch() as workspace, model.language_model.lock:
        measure_fluency(
            model.language_model,
            {name: item.patch for name, item in patches.items()},
            encode_texts(model.language_model, texts, chosen.max_tokens),
            tokens_per_batch=settings.execution.tokens_per_batch,
            workspace=workspace,
        )
        return read_table(workspace, tables.FLUENCY.file)


def _compare(
    prompts: pa.Table,
    evidence: Mapping[str, ArmEvidence],
    fluency: pa.Table,
    scorer: Scorer,
    settings: RefreshSettings,
) -> pa.Table:
    """`schemas.EVALUATIONS` rows; without neutral texts of toxicity alone."""
    chosen, threshold = settings.evaluation, settings.scorer.toxic_threshold
    if not len(fluency):
        table = tabulate_prompts(prompts, evidence, threshold)
        rows = [
            row
            for name, members in find_slices(table.prompts, threshold).items()
            for row in compare_toxicity(table, members, name, chosen, scorer.name)
        ]
        return pa.Table.from_pylist(rows, schema=schemas.EVALUATIONS)
    with work_in_scratch() as workspace:
        compare_arms(
            prompts,
            evidence,
            fluency,
            NO_TEXTS,
            chosen,
            scorer=scorer.name,
            toxic_threshold=threshold,
            workspace=workspace,
        )
        return read_table(workspace, tables.EVALUATIONS.file)


def _find_caveats(
    patches: Mapping[str, ModelPatch], prompts: Texts, neutral: Texts | None
) -> list[str]:
    """What makes the numbers better than they are, or leaves out what counts."""
    digests = digest_texts(prompts)
    seen = {name: len(digests & item.chosen_on) for name, item in patches.items()}
    notes = [
        f"{name} was made from {count} of these prompts: its numbers are too good. Judge it on "
        "others (Texts.split)."
        for name, count in seen.items()
        if count
    ]
    return notes if neutral is not None else [*notes, "no cost is measured: give neutral texts"]
