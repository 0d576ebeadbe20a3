"""Scoring: unscored stays unscored; a checkpoint that could run code is not opened."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base import schemas
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.scoring import score_continuations
from tests.support.fake_scorer import WordScorer


def make_continuations(tokenizer: Any, texts: list[str]) -> pa.Table:
    """Continuations with the tokens of the given texts."""
    rows = [
        {
            "prompt_id": f"p{place}",
            "sample_index": 0,
            "language": "en",
            "prompt": "",
            "continuation": text,
            "prompt_token_ids": [0],
            "token_ids": tokenizer(text)["input_ids"],
        }
        for place, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS)


def test_substrings_do_not_count(tiny_tokenizer: Any, workspace: Workspace) -> None:
    """A harmless word that holds another is not scored as that."""
    scorer = WordScorer(insults=(" ass ",))
    table = make_continuations(tiny_tokenizer, ["the classic assembly"])
    score_continuations(scorer, table, workspace)
    assert pq.read_table(workspace.path("scores.parquet"))["toxicity_probability"][0].as_py() < 0.5


def test_a_continuation_without_score_is_kept_as_unscored(
    tiny_tokenizer: Any, workspace: Workspace
) -> None:
    """It has no probability and a reason; it is not called non-toxic."""
    scorer = WordScorer(unscorable="the river")
    table = make_continuations(tiny_tokenizer, ["the river", "the garden", "  "])
    score_continuations(scorer, table, workspace)
    rows = pq.read_table(workspace.path("scores.parquet")).to_pylist()
    assert [row["status"] for row in rows] == ["unscored", "scored", "unscored"]
    assert [row["toxicity_probability"] is None for row in rows] == [True, False, True]
    assert rows[0]["reason"] == "made to fail"
