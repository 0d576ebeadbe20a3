"""Long continuations: judged as short ones are, under a name of their own."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.comparison import ArmEvidence
from eigenshift.evaluation.confirmation import confirm_at_length
from eigenshift.evaluation.gate import check_confirmation
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.evaluation.stages import LongComparisonKey
from eigenshift.settings import GateSettings
from eigenshift.store.workspace import Workspace
from tests.support.keys import make_key

N_PROMPTS, N_CONTINUED = 30, 12
KEY = make_key(
    LongComparisonKey,
    *("generation.confirm_tokens=100", "evaluation.n_bootstrap=400"),
    arms=("base", "patched"),
)


def make_prompts() -> pa.Table:
    """More of them than are continued, half of them harmless."""
    rows = [
        {
            "prompt_id": f"p{place:02d}",
            "part": "evaluation",
            "language": "en",
            "toxicity": 0.9 if place % 2 else 0.1,
            "prompt": "",
        }
        for place in range(N_PROMPTS)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PROMPTS)


def make_evidence(
    probability: float, tokens: list[int], text: str, n_prompts: int = N_CONTINUED
) -> ArmEvidence:
    """Two continuations of each prompt, alike."""
    keys = [
        {"prompt_id": f"p{place:02d}", "sample_index": sample}
        for place in range(n_prompts)
        for sample in (0, 1)
    ]
    continuations = [{**key, "token_ids": tokens, "continuation": text} for key in keys]
    scores = [{**key, "toxicity_probability": probability} for key in keys]
    return ArmEvidence(
        pa.Table.from_pylist(continuations, schema=schemas.CONTINUATIONS),
        pa.Table.from_pylist(scores, schema=schemas.SCORES),
    )


def confirm(workspace: Workspace, patched: ArmEvidence) -> list[dict[str, Any]]:
    """Against a base that is always toxic and never repeats itself."""
    base = make_evidence(0.9, list(range(20)), "a garden")
    confirm_at_length(make_prompts(), {"base": base, "patched": patched}, KEY, workspace)
    return pq.read_table(workspace.path("confirmations.parquet")).to_pylist()


def test_prompts_that_were_not_continued_are_left_out(workspace: Workspace) -> None:
    """Rates are of those that were, in every slice; each row says how long they are."""
    rows = confirm(workspace, make_evidence(0.1, [7] * 20, "I cannot say"))
    table = MetricTable(rows)
    assert {row["n_tokens"] for row in rows} == {100}
    assert table.find("base", "toxicity_rate")["n"] == N_CONTINUED
    assert table.find("patched", "toxicity_rate", "prompt=toxic")["n"] == N_CONTINUED / 2
    assert table.find("patched", "toxicity_rate_difference")["value"] == -1.0
    assert table.find("patched", "repeated_4gram_share_difference")["value"] == pytest.approx(
        1 - 1 / 17
    )
    assert table.find("patched", "refusal_share_difference", "prompt=nontoxic")["value"] == 1.0


def test_an_arm_without_all_prompts_is_refused(workspace: Workspace) -> None:
    """The arms would not be paired."""
    with pytest.raises(EvaluationError, match="patched"):
        confirm(workspace, make_evidence(0.1, [1], "a", n_prompts=5))


def test_the_gate_asks_again_whether_toxicity_is_reduced(workspace: Workspace) -> None:
    """With the length in the check's name, and bounds of degeneration in force here too."""
    rows = confirm(workspace, make_evidence(0.1, [7] * 20, "a kettle"))
    reduced, told = check_confirmation(rows, GateSettings(), "patched")
    assert (reduced.name, reduced.is_passed) == ("toxicity is reduced at 100 tokens", True)
    assert (told.name, told.is_passed) == (
        "told, not required: how continuations degenerate at 100 tokens",
        True,
    )
    bounded = check_confirmation(rows, GateSettings(max_repetition_increase=0.1), "patched")
    assert [check.name for check in bounded if not check.is_passed] == [
        "no more repeated 4-grams at 100 tokens"
    ]


def test_what_is_as_toxic_at_length_is_held(workspace: Workspace) -> None:
    """Harmless for a sentence is not enough."""
    rows = confirm(workspace, make_evidence(0.9, list(range(20)), "a kettle"))
    assert not check_confirmation(rows, GateSettings(), "patched")[0].is_passed
