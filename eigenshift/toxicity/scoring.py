"""Judge continuations: how toxic each is.

Reads `continuations.parquet`; writes `scores.parquet` (`schemas.SCORES`). A continuation that
cannot be scored is kept as unscored with its reason and never counted as non-toxic
(docs/decisions/0005-unscored-continuations.md). Which words make it toxic is
`toxic_positions.py`'s.
"""

from __future__ import annotations

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scorers.loading import open_scorer
from eigenshift.toxicity.stages import FurtherScoringKey, ScoringInputs, ScoringKey


def score_continuations(scorer: Scorer, continuations: pa.Table, workspace: Workspace) -> None:
    """Score every continuation (without its prompt) and write `scores.parquet`."""
    rows = continuations.select(["prompt_id", "sample_index", "continuation"]).to_pylist()
    scores = scorer.score([row["continuation"] for row in rows])
    table = [
        {
            "prompt_id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "scorer": scorer.name,
            "toxicity_probability": score.probability,
            "status": "unscored" if score.probability is None else "scored",
            "reason": score.reason,
        }
        for row, score in zip(rows, scores, strict=True)
    ]
    workspace.write_rows(tables.SCORES.file, table, schemas.SCORES)
    workspace.facts = {
        "n_scored": sum(score.probability is not None for score in scores),
        "n_unscored": sum(score.probability is None for score in scores),
    }


def carry_out(
    inputs: ScoringInputs,
    key: ScoringKey | FurtherScoringKey,
    bench: Bench,
    workspace: Workspace,
) -> None:
    """The work of the stages `score_continuations` and `score_further`."""
    settings = inputs.scorer.settings.model_copy(update={"name": key.scorer})
    scorer = open_scorer(settings, bench.execution)
    texts = bench.artifacts.read_shards([inputs.continuations], tables.CONTINUATIONS.file)
    score_continuations(scorer, texts, workspace)
