"""Toxicity rates of a search's trials, foretold from what the base said.

Reads screened trials, the head's decomposition and the base's scored continuations of the selection
prompts; writes the trials again with what is foretold of the most promising
(`likelihood_ratios.py`, `predicted_rates.py`). Nothing is generated. Which are promising is
`trials.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import EvaluationError
from eigenshift.components.decomposition import open_decomposition
from eigenshift.evaluation.bootstrap import draw_counts
from eigenshift.evaluation.likelihood_ratios import DrawnText, measure_log_ratios
from eigenshift.evaluation.predicted_rates import PredictedRate, choose_texts, predict_rate
from eigenshift.evaluation.stages import PredictionInputs, PredictionKey
from eigenshift.evaluation.trials import Row, find_damped, rank_promising
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.unscored import require_scored

logger = logging.getLogger(__name__)


def foretell(
    language_model: LanguageModel,
    edits: Sequence[ModelEdit],
    continuations: pa.Table,
    scores: pa.Table,
    key: PredictionKey,
    *,
    tokens_per_batch: int,
) -> list[PredictedRate]:
    """The toxicity rate of each edit on the prompts that the base continued.

    Args:
        language_model: The unpatched model.
        edits: Of any part of the model.
        continuations: `schemas.CONTINUATIONS` rows of the base.
        scores: `schemas.SCORES` rows, in the same order; unscored texts are left out.
        key: How the texts were drawn, when one is toxic, intervals.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Raises:
        EvaluationError: No continuation is scored.
    """
    probabilities = scores["toxicity_probability"].to_numpy().astype(np.float64)
    is_scored = ~np.isnan(probabilities)
    if not is_scored.any():
        raise EvaluationError(
            f"trials: expected scored continuations of the base, found none among {len(scores)}."
        )
    is_toxic = (probabilities > key.toxic_threshold)[is_scored]
    columns = continuations.select(["prompt_id", "prompt_token_ids", "token_ids"])
    rows = columns.filter(pa.array(is_scored)).to_pylist()
    names, prompts = np.unique([row["prompt_id"] for row in rows], return_inverse=True)
    sample = choose_texts(is_toxic, prompts, len(names), key.seed)
    texts = [
        DrawnText(rows[place]["prompt_token_ids"], rows[place]["token_ids"])
        for place in sample.places
    ]
    ratios = measure_log_ratios(
        language_model, texts, edits, key.generation, tokens_per_batch=tokens_per_batch
    )
    logger.info(
        "foretelling of trials: trials=%d continuations=%d weighed=%d toxic=%d",
        len(edits),
        len(rows),
        len(texts),
        int(is_toxic.sum()),
    )
    replicates = draw_counts(len(names), key.n_bootstrap, key.seed)
    return [
        predict_rate(of_edit, is_toxic[sample.places], sample, replicates, key.confidence)
        for of_edit in ratios
    ]


def predict_trials(
    language_model: LanguageModel,
    screened: pa.Table,
    v: FloatArray,
    continuations: pa.Table,
    scores: pa.Table,
    key: PredictionKey,
    *,
    tokens_per_batch: int,
) -> list[Row]:
    """The screened trials, the most promising with their foretold rates.

    Args:
        language_model: The unpatched model.
        screened: `schemas.TRIALS` rows.
        v: Right singular vectors of the head, shape (hidden, component).
        continuations: As for `foretell`.
        scores: As for `foretell`.
        key: As for `foretell`, and how many.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
    """
    rows: list[Row] = screened.to_pylist()
    asked: dict[Any, list[Row]] = {}
    for row in rank_promising(rows):
        damped = find_damped(row)
        if damped in asked or len(asked) < key.n_predicted:
            asked.setdefault(damped, []).append(row)
    edits = [
        ModelEdit(
            head=HeadEdit.scale_directions(
                v[:, found[0]["component_indices"]], found[0]["component_factors"]
            )
        )
        for found in asked.values()
    ]
    if not edits:
        return rows
    rates = foretell(
        language_model, edits, continuations, scores, key, tokens_per_batch=tokens_per_batch
    )
    for found, rate in zip(asked.values(), rates, strict=True):
        for row in found:
            row |= {
                "predicted_rate": rate.value,
                "predicted_rate_low": rate.low,
                "predicted_rate_high": rate.high,
                "n_effective": rate.n_effective,
                "covered": rate.covered,
                "is_prediction_reliable": rate.is_reliable,
            }
    promising = rank_promising(rows)
    for row in rows:
        row["is_best"] = bool(promising) and row is promising[0]
    return rows


def carry_out(
    inputs: PredictionInputs, key: PredictionKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `predict_trials`."""
    artifacts = bench.artifacts
    scores = artifacts.read_shards(inputs.scores, tables.SCORES.file)
    n_unscored = scores["toxicity_probability"].null_count
    require_scored(n_unscored, len(scores), key.max_unscored_share, "selection prompts")
    with use_model(bench.model, bench.execution.device) as language_model:
        rows = predict_trials(
            language_model,
            artifacts.read_shards([inputs.screening], tables.TRIALS.file),
            open_decomposition(artifacts.open(inputs.decomposition)).v,
            artifacts.read_shards(inputs.continuations, tables.CONTINUATIONS.file),
            scores,
            key,
            tokens_per_batch=bench.execution.tokens_per_batch,
        )
    workspace.write_rows(tables.TRIALS.file, rows, schemas.TRIALS)
    workspace.facts = {"n_predicted": sum(row.get("predicted_rate") is not None for row in rows)}
