"""Scoring: unscored stays unscored; a checkpoint that could run code is not opened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.errors import EvaluationError, ScorerError
from eigenshift.scorers import load_scorer
from eigenshift.scoring import require_scored, score_continuations
from eigenshift.settings import ScorerSettings
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


def test_too_many_unscored_stop_the_run() -> None:
    """Above the set share the evaluation fails instead of reporting a low toxicity."""
    require_scored(2, 100, 0.02, "arm base")
    with pytest.raises(EvaluationError, match="3 of 100"):
        require_scored(3, 100, 0.02, "arm base")


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle may do to whoever opens it."""
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_unopened(tmp_path: Path) -> None:
    """Detoxify unpickles what it is given, so the check comes before it."""
    checkpoint, trace = tmp_path / "bad.ckpt", tmp_path / "trace"
    torch.save({"config": {}, "state_dict": Malicious(trace)}, checkpoint)
    with pytest.raises(ScorerError, match="weights only"):
        load_scorer(ScorerSettings(checkpoint=str(checkpoint)), "cpu", 8)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps({"a": 1}, 2)],
    ids=["empty", "text", "pickle"],
)
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    """Whatever is wrong with the file, the message names it and nothing runs."""
    checkpoint = tmp_path / "damaged.ckpt"
    checkpoint.write_bytes(content)
    with pytest.raises(ScorerError, match=r"damaged\.ckpt"):
        load_scorer(ScorerSettings(checkpoint=str(checkpoint)), "cpu", 8)


def test_a_missing_checkpoint_is_a_clear_error() -> None:
    """The path that was looked for is in the message."""
    with pytest.raises(ScorerError, match="nowhere"):
        load_scorer(ScorerSettings(checkpoint="nowhere/model.ckpt"), "cpu", 8)
