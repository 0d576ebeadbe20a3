"""Toxicity rates of a search's trials, foretold from what the base said.

Reads screened trials, the head's decomposition and the base's scored continuations of the selection
prompts; writes the trials again with what is foretold of the most promising
(`likelihood_ratios.py`, `predicted_rates.py`), and their rates by every scorer in every slice of
the prompts. Nothing is generated. Which are promising is
`trials.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import EvaluationError
from eigenshift.components.decomposition import open_decomposition
from eigenshift.evaluation.bootstrap import draw_counts
from eigenshift.evaluation.likelihood_ratios import DrawnText, measure_log_ratios
from eigenshift.evaluation.predicted_rates import (
    PredictedRate,
    WeighedSample,
    choose_texts,
    predict_rate,
)
from eigenshift.evaluation.slices import find_slices
from eigenshift.evaluation.stages import PredictionInputs, PredictionKey
from eigenshift.evaluation.trials import Row, find_damped, rank_promising
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.unscored import require_scored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What one scorer said of the base's continuations.

    Attributes:
        scorer: Its name.
        toxic_threshold: A probability above this counts as toxic.
        scores: `schemas.SCORES` rows, in the order of the continuations.
    """

    scorer: str
    toxic_threshold: float
    scores: pa.Table

    @property
    def probabilities(self) -> FloatArray:
        """Of each continuation, NaN where it is unscored, shape (continuation,)."""
        return np.asarray(self.scores["toxicity_probability"].to_numpy(), np.float64)


@dataclass(frozen=True)
class Foretelling:
    """The base's weighed texts, and how much likelier each edited model is to say them.

    Attributes:
        log_ratios: log p(y) / q(y), shape (edit, text).
        sample: Which texts these are.
        prompt_ids: Of the prompts that `sample` counts, in its order.
        probabilities: By scorer, of each of the texts, shape (text,); NaN where it is unscored.
        thresholds: By scorer.
        key: Intervals.
    """

    log_ratios: FloatArray
    sample: WeighedSample
    prompt_ids: list[str]
    probabilities: Mapping[str, FloatArray]
    thresholds: Mapping[str, float]
    key: PredictionKey

    def predict(
        self, scorer: str, prompt_ids: Collection[str] | None = None
    ) -> list[PredictedRate]:
        """Rate of each edit, by one scorer, on all prompts or on some."""
        found = self.probabilities[scorer]
        is_scored = ~np.isnan(found)
        sample = replace(self.sample, counts=self.sample.counts * is_scored)
        members = [
            place
            for place, name in enumerate(self.prompt_ids)
            if prompt_ids is None or name in prompt_ids
        ]
        drawn = draw_counts(len(members), self.key.n_bootstrap, self.key.seed)
        replicates = np.zeros((len(drawn), len(self.prompt_ids)))
        replicates[:, members] = drawn
        is_toxic = found > self.thresholds[scorer]
        return [
            predict_rate(of_edit, is_toxic, sample, replicates, self.key.confidence)
            for of_edit in self.log_ratios
        ]


def foretell(
    language_model: LanguageModel,
    edits: Sequence[ModelEdit],
    continuations: pa.Table,
    verdicts: Sequence[Verdict],
    key: PredictionKey,
    *,
    tokens_per_batch: int,
) -> Foretelling:
    """Weigh the base's continuations for each edit.

    Args:
        language_model: The unpatched model.
        edits: Of any part of the model.
        continuations: `schemas.CONTINUATIONS` rows of the base.
        verdicts: The deciding scorer's, then others'; texts that the first could not score are left
            out.
        key: How the texts were drawn, intervals.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Raises:
        EvaluationError: No continuation is scored.
    """
    deciding = verdicts[0]
    is_scored = ~np.isnan(deciding.probabilities)
    if not is_scored.any():
        raise EvaluationError(
            "trials: expected scored continuations of the base, found none among "
            f"{continuations.num_rows}."
        )
    probabilities = {of.scorer: of.probabilities[is_scored] for of in verdicts}
    is_toxic = np.any([probabilities[of.scorer] > of.toxic_threshold for of in verdicts], axis=0)
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
    return Foretelling(
        ratios,
        sample,
        names.tolist(),
        {name: found[sample.places] for name, found in probabilities.items()},
        {of.scorer: of.toxic_threshold for of in verdicts},
        key,
    )


def predict_trials(
    language_model: LanguageModel,
    screened: pa.Table,
    v: FloatArray,
    prompts: pa.Table,
    continuations: pa.Table,
    verdicts: Sequence[Verdict],
    key: PredictionKey,
    *,
    tokens_per_batch: int,
) -> tuple[list[Row], list[Row]]:
    """The screened trials, the most promising with their foretold rates.

    Args:
        language_model: The unpatched model.
        screened: `schemas.TRIALS` rows.
        v: Right singular vectors of the head, shape (hidden, component).
        prompts: `schemas.PROMPTS` rows, for the slices.
        continuations: As for `foretell`.
        verdicts: As for `foretell`.
        key: As for `foretell`, and how many.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Returns:
        `schemas.TRIALS` rows, with the deciding scorer's rate on all prompts, and
        `schemas.PREDICTED_RATES` rows, of every scorer and slice.
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
        return rows, []
    foretelling = foretell(
        language_model, edits, continuations, verdicts, key, tokens_per_batch=tokens_per_batch
    )
    predicted = list(_list_rates(foretelling, list(asked.values()), prompts.to_pylist()))
    rates = foretelling.predict(verdicts[0].scorer)
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
    return rows, predicted


def _list_rates(
    foretelling: Foretelling, trials: Sequence[Sequence[Row]], prompts: Sequence[Row]
) -> Iterator[Row]:
    """Rows of each scorer and slice of the prompts; trials that are one patch have a row each."""
    for slice_name, members in find_slices(prompts, foretelling.key.toxic_threshold).items():
        names = {prompts[place]["prompt_id"] for place in members}
        if names.isdisjoint(foretelling.prompt_ids):
            continue
        for scorer in foretelling.thresholds:
            for same, rate in zip(trials, foretelling.predict(scorer, names), strict=True):
                for row in same:
                    yield {
                        "score": row["score"],
                        "n_components": row["n_components"],
                        "factor": row["factor"],
                        "scorer": scorer,
                        "slice": slice_name,
                        "rate": rate.value,
                        "rate_low": rate.low,
                        "rate_high": rate.high,
                        "n_effective": rate.n_effective,
                        "covered": rate.covered,
                        "is_reliable": rate.is_reliable,
                    }


def carry_out(
    inputs: PredictionInputs, key: PredictionKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `predict_trials`."""
    artifacts = bench.artifacts
    verdicts = []
    for shards, asked in zip(
        (inputs.scores, *(item.scores for item in inputs.further)),
        (key, *key.further),  # the deciding scorer is the key's own
        strict=True,
    ):
        scores = artifacts.read_shards(shards, tables.SCORES.file)
        n_unscored = scores["toxicity_probability"].null_count
        require_scored(n_unscored, len(scores), asked.max_unscored_share, "selection prompts")
        verdicts.append(Verdict(asked.scorer, asked.toxic_threshold, scores))
    with use_model(bench.model, bench.execution) as language_model:
        rows, predicted = predict_trials(
            language_model,
            artifacts.read_shards([inputs.screening], tables.TRIALS.file),
            open_decomposition(artifacts.open(inputs.decomposition)).v,
            pa.concat_tables(map(artifacts.read_table, inputs.prompts)),
            artifacts.read_shards(inputs.continuations, tables.CONTINUATIONS.file),
            verdicts,
            key,
            tokens_per_batch=bench.execution.tokens_per_batch,
        )
    workspace.write_rows(tables.TRIALS.file, rows, schemas.TRIALS)
    workspace.write_rows(tables.PREDICTED_RATES.file, predicted, schemas.PREDICTED_RATES)
    workspace.facts = {"n_predicted": sum(row.get("predicted_rate") is not None for row in rows)}
