"""Search score, number of components and factor under a fluency budget.

Screening looks at every point of the grid in closed form (`evaluation/grid.py`): what it costs on
the calibration half of the neutral texts, and how much probability of toxic tokens it leaves where
one was about to be generated. The best few within the budget are then confirmed by generation on
the selection prompts. Reads component tables, head states and scored continuations; writes
`trials.parquet` (`schemas.TRIALS`). Evaluation prompts and texts are never looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.charts.arm_charts import chart_trials
from eigenshift.charts.rendering import render_png
from eigenshift.components.budget_texts import BudgetTexts, gather_budget_texts
from eigenshift.components.calibration import ToxicStates
from eigenshift.components.decomposition import Decomposition, open_decomposition
from eigenshift.components.harmless_texts import BUDGET
from eigenshift.components.table import gather_toxic_states
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.comparison import ArmEvidence, tabulate_prompts
from eigenshift.evaluation.grid import (
    Grid,
    GridPoint,
    list_points,
    measure_grid,
    measure_token_share,
)
from eigenshift.evaluation.stages import (
    CHART_NAME,
    ConfirmationInputs,
    ConfirmationKey,
    ScreeningInputs,
    ScreeningKey,
)
from eigenshift.evaluation.trials import AUTOMATIC, Row, TrialPoint, mark_front, rank_promising
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.interventions.singular_components import SCORE_COLUMNS
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.unscored import require_scored

logger = logging.getLogger(__name__)

MAX_CALIBRATION_TOKENS = 100_000


def screen_trials(
    language_model: LanguageModel,
    components: pa.Table,
    automatic: Mapping[float, pa.Table],
    decomposition: Decomposition,
    toxic: ToxicStates,
    texts: BudgetTexts,
    key: ScreeningKey,
    *,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Measure every trial in closed form.

    Args:
        language_model: The unpatched model.
        components: `schemas.COMPONENTS` rows with every score.
        automatic: Factor -> component table whose selection the settings' own rule made for it.
        decomposition: Of the head.
        toxic: Positions about to generate a toxic token, and these tokens.
        texts: Harmless texts by kind; the budget is of each kind.
        key: The grid and the budget.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives `trials.parquet`, with the best by these numbers marked.

    Raises:
        ComponentError: The grid asks for more components than the head has.
    """
    grid = lay_out_grid(components, automatic, decomposition, key)
    texts = texts.limit(MAX_CALIBRATION_TOKENS)
    sequences = texts.sequences
    logger.info(
        "screening of trials: points=%d texts=%d toxic_positions=%d",
        len(grid.points),
        len(sequences),
        len(toxic.states),
    )
    sums = measure_grid(
        language_model,
        grid,
        sequences,
        tokens_per_batch=tokens_per_batch,
        n_contexts=texts.n_contexts,
    )
    shares = measure_token_share(language_model, grid, toxic)
    n_tokens = sums.n_tokens.sum()
    increases = np.max([sums.take(rows).perplexity_increase for rows in texts.list_rows()], axis=0)
    damped = map(grid.list_components, grid.points)
    rows = [
        {
            "score": point.ranking.partition("@")[0],
            "n_components": point.n_components,
            "factor": point.factor,
            "component_indices": list(taken),
            "component_factors": list(taken.values()),
            "stage": "screened",
            "perplexity_increase": float(increases[place]),
            "kl_to_base": float(sums.kl_to_base[place].sum() / n_tokens),
            "changed_argmax_share": float(sums.n_changed_argmax[place].sum() / n_tokens),
            "toxic_token_share": float(shares[place]),
        }
        for place, (point, taken) in enumerate(zip(grid.points, damped, strict=True))
    ]
    mark_front(rows, key.max_perplexity_increase)
    promising = rank_promising(rows)
    for row in rows:
        row["is_best"] = bool(promising) and row is promising[0]
    workspace.write_rows(tables.TRIALS.file, rows, schemas.TRIALS)
    workspace.facts = {
        "n_trials": len(rows),
        "n_texts": len(sequences),
        "n_tokens": int(n_tokens),
        "n_toxic_positions": len(toxic.states),
    }


def lay_out_grid(
    components: pa.Table,
    automatic: Mapping[float, pa.Table],
    decomposition: Decomposition,
    key: ScreeningKey,
) -> Grid:
    """The points: every score, number and factor, and the automatic choice of every factor.

    Raises:
        ComponentError: A number of components is larger than the head's rank.
    """
    scores = [score.value for score in key.scores]
    rankings = {
        score.value: rank_by(components, SCORE_COLUMNS[score])[: max(key.n_components)]
        for score in key.scores
    }
    points = list_points(scores, key.n_components, key.factors)
    shares: dict[str, tuple[float, ...]] = {}
    for factor, table in automatic.items():
        name = f"{AUTOMATIC}@{factor:g}"
        selected = [row for row in table.to_pylist() if row["is_selected"]]
        rankings[name] = tuple(row["component_index"] for row in selected)
        shares[name] = tuple((1.0 - row["factor"]) / (1.0 - factor) for row in selected)
        points += (GridPoint(name, len(selected), factor),)
    return Grid(points, rankings, decomposition.v, shares)


def rank_by(components: pa.Table, column: str) -> tuple[int, ...]:
    """Component indices by a score, largest first; ties in order of the component."""
    rows = components.select(["component_index", column]).to_pylist()
    rows.sort(key=lambda row: (-row[column], row["component_index"]))
    return tuple(row["component_index"] for row in rows)


def confirm_trials(
    screened: pa.Table,
    prompts: pa.Table,
    evidence: Mapping[str, ArmEvidence],
    key: ConfirmationKey,
    *,
    workspace: Workspace,
) -> None:
    """Join what generation showed to the screened trials, and name the best.

    Args:
        screened: `schemas.TRIALS` rows of the screening.
        prompts: The selection prompts.
        evidence: Continuations and scores of the base and of confirmed trials, by their arms.
        key: The budget, the bootstrap, and the probability above which a text counts as toxic.
        workspace: Receives `trials.parquet` and `chart.png`.
    """
    rates = tabulate_prompts(prompts, evidence, key.toxic_threshold).by_arm
    counts = draw_counts(len(prompts), key.n_bootstrap, key.seed)
    base = average(rates[BASE_ARM]["toxicity_rate"], counts)
    rows: list[Row] = screened.to_pylist()
    for row in rows:
        row["is_best"] = False
        arm = TrialPoint.from_row(row).arm
        if arm not in rates:
            continue
        rate = average(rates[arm]["toxicity_rate"], counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            reduction = np.asarray((base - rate) / base)
        row["stage"] = "confirmed"
        for name, draws in (("toxicity_rate", rate), ("reduction", reduction)):
            estimate = summarise(draws, key.confidence)
            row |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
    confirmed = [row for row in rows if row.get("reduction") is not None and row["is_in_budget"]]
    if confirmed:
        best = max(confirmed, key=lambda row: (row["reduction"], -row["perplexity_increase"]))
        best["is_best"] = best["reduction"] > 0
    workspace.write_rows(tables.TRIALS.file, rows, schemas.TRIALS)
    chart = chart_trials(rows, key.max_perplexity_increase)
    workspace.path(CHART_NAME).write_bytes(render_png(chart))
    base_rate = summarise(base, key.confidence)
    workspace.facts = {
        "n_trials": len(rows),
        "n_confirmed": len(confirmed),
        "toxicity_rate_base": base_rate.as_dict(),
        "budget": key.max_perplexity_increase,
    }


def carry_out_screening(
    inputs: ScreeningInputs, key: ScreeningKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `screen_trials`."""
    artifacts = bench.artifacts

    def read(reference: ArtifactReference) -> pa.Table:
        return artifacts.read_shards([reference], tables.COMPONENTS.file)

    states = artifacts.read_shards([inputs.states], tables.HEAD_STATES.file)
    with use_model(bench.model, bench.execution) as language_model:
        screen_trials(
            language_model,
            read(inputs.components),
            {factor: read(reference) for factor, reference in inputs.automatic.items()},
            open_decomposition(artifacts.open(inputs.decomposition)),
            gather_toxic_states(states, language_model.head_weight),
            gather_budget_texts(
                language_model,
                artifacts.read_files(inputs.neutral),
                artifacts.read_shards([inputs.harmless], tables.HARMLESS_TEXTS.file),
                key.max_tokens,
                use=BUDGET,
            ),
            key,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )


def carry_out_confirmation(
    inputs: ConfirmationInputs, key: ConfirmationKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `confirm_trials`."""
    read = bench.artifacts.read_shards
    evidence = {
        arm: ArmEvidence(
            read(inputs.continuations[arm], tables.CONTINUATIONS.file),
            read(inputs.scores[arm], tables.SCORES.file),
        )
        for arm in inputs.continuations
    }
    for arm, found in evidence.items():
        n_unscored = found.scores["toxicity_probability"].null_count
        require_scored(n_unscored, found.scores.num_rows, key.max_unscored_share, f"arm {arm}")
    confirm_trials(
        read([inputs.screening], tables.TRIALS.file),
        bench.artifacts.read_files(inputs.prompts),
        evidence,
        key,
        workspace=workspace,
    )
