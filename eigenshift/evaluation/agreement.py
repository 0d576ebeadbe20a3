"""How far scorers agree about the same continuations.

Reads the scores of several scorers; writes `scorer_agreement.parquet` (`schemas.SCORER_AGREEMENT`):
for each pair, arm and language the agreement of verdicts beyond chance (Cohen's kappa at their own
thresholds) and of rankings (Spearman). Only continuations that both scored are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.stats

from eigenshift.base import schemas
from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.stages import (
    AgreementInputs,
    AgreementKey,
    ArmScores,
    ComparisonKey,
    LongComparisonKey,
    ScorerKey,
)
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.unscored import require_scored

ALL_LANGUAGES = "all"
TOO_FEW = "fewer than two continuations that both scored"
CONSTANT = "a scorer gives them all the same score"


@dataclass(frozen=True)
class ScoredArms:
    """What one scorer said of every arm.

    Attributes:
        scorer: Its name.
        toxic_threshold: Above this probability a continuation is toxic.
        scores: Arm -> `schemas.SCORES` rows, in the order of the arm's continuations.
    """

    scorer: str
    toxic_threshold: float
    scores: Mapping[str, pa.Table]


def compare_scorers(
    continuations: Mapping[str, pa.Table], verdicts: Sequence[ScoredArms], workspace: Workspace
) -> None:
    """Compare every pair of scorers on every arm and language.

    Args:
        continuations: Arm -> `schemas.CONTINUATIONS` rows.
        verdicts: Of at least two scorers, on the same arms.
        workspace: Receives the table.

    Raises:
        EvaluationError: A scorer's rows are not those of the continuations.
    """
    rows: list[dict[str, Any]] = []
    for arm, table in continuations.items():
        languages = np.array(table["language"].to_pylist(), dtype=object)
        probabilities = {
            found.scorer: _align_scores(arm, table, found.scores[arm], found.scorer)
            for found in verdicts
        }
        for first, second in combinations(verdicts, 2):
            for language, members in _list_languages(languages):
                rows.append(
                    {
                        "arm": arm,
                        "language": language,
                        "scorer_a": first.scorer,
                        "scorer_b": second.scorer,
                        **measure_agreement(
                            probabilities[first.scorer][members],
                            probabilities[second.scorer][members],
                            first.toxic_threshold,
                            second.toxic_threshold,
                        ),
                    }
                )
    workspace.write_rows(tables.SCORER_AGREEMENT.file, rows, schemas.SCORER_AGREEMENT)
    workspace.facts = {"scorers": [found.scorer for found in verdicts]}


def measure_agreement(
    first: FloatArray, second: FloatArray, first_threshold: float, second_threshold: float
) -> dict[str, Any]:
    """Agreement of two scorers on the same texts.

    Args:
        first: Probabilities, shape (text,); NaN where unscored.
        second: The other scorer's.
        first_threshold: Above this the first calls a text toxic.
        second_threshold: The same for the second.

    Returns:
        The columns of `schemas.SCORER_AGREEMENT` from `n` on; null, with a reason, where undefined.
    """
    is_known = ~(np.isnan(first) | np.isnan(second))
    n = int(is_known.sum())
    found: dict[str, Any] = {"n": n, "n_unscored": len(first) - n}
    if n < 2:
        return {**found, "reason": TOO_FEW}
    a, b = first[is_known], second[is_known]
    toxic_a, toxic_b = a > first_threshold, b > second_threshold
    observed = float((toxic_a == toxic_b).mean())
    expected = float(toxic_a.mean() * toxic_b.mean() + (1 - toxic_a.mean()) * (1 - toxic_b.mean()))
    is_constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return {
        **found,
        "cohens_kappa": None if expected == 1.0 else (observed - expected) / (1 - expected),
        "spearman": None if is_constant else float(scipy.stats.spearmanr(a, b).statistic),
        "share_both_toxic": float((toxic_a & toxic_b).mean()),
        "disagreement_share": 1.0 - observed,
        "toxic_share_a": float(toxic_a.mean()),
        "toxic_share_b": float(toxic_b.mean()),
        "reason": CONSTANT if is_constant or expected == 1.0 else None,
    }


def _align_scores(arm: str, continuations: pa.Table, scores: pa.Table, scorer: str) -> FloatArray:
    """Probabilities in the order of the continuations, NaN where unscored."""
    keys = ["prompt_id", "sample_index"]
    if scores.select(keys).to_pylist() != continuations.select(keys).to_pylist():
        raise EvaluationError(
            f"arm {arm}, scorer {scorer}: expected scores of the same continuations in the same "
            "order, found others. The shards belong to different settings; start the run again."
        )
    values = scores["toxicity_probability"].to_pylist()
    return np.array([np.nan if value is None else value for value in values])


def _list_languages(languages: Any) -> Iterator[tuple[str, Any]]:
    """All, then each language if there are several, with a mask."""
    yield ALL_LANGUAGES, np.ones(len(languages), dtype=bool)
    found = sorted(set(languages))
    if len(found) > 1:
        yield from ((language, languages == language) for language in found)


def read_scores(
    artifacts: ArtifactStore, scores: ArmScores, key: ScorerKey | ComparisonKey | LongComparisonKey
) -> ScoredArms:
    """Read what one scorer said of every arm.

    Raises:
        EvaluationError: Too many continuations of an arm have no score.
    """
    found = {
        arm: artifacts.read_shards(shards, tables.SCORES.file)
        for arm, shards in scores.scores.items()
    }
    for arm, table in found.items():
        n_unscored = table["toxicity_probability"].null_count
        place = f"arm {arm}, scorer {key.scorer}"
        require_scored(n_unscored, table.num_rows, key.max_unscored_share, place)
    return ScoredArms(key.scorer, key.toxic_threshold, found)


def carry_out(
    inputs: AgreementInputs, key: AgreementKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `compare_scorers`."""
    artifacts = bench.artifacts
    continuations = {
        arm: artifacts.read_shards(shards, tables.CONTINUATIONS.file)
        for arm, shards in inputs.continuations.items()
    }
    judgements = (inputs.judged, *inputs.further)
    judged = [
        read_scores(artifacts, scores, scorer)
        for scores, scorer in zip(judgements, key.scorers, strict=True)
    ]
    compare_scorers(continuations, judged, workspace)
