"""What a refresh, a comparison and a search print, as a stranger sees it in 80 columns."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eigenshift.ledger.runs import StageSummary
from eigenshift.reporting.outcomes import ArmComparison, RefreshOutcome
from flows import run_commands
from tests.support.compared_arms import make_arm
from tests.support.small_store import build_small_store

CHECKS: list[dict[str, Any]] = [
    {
        "name": "divergence from the base stays in budget",
        "is_passed": False,
        "expected": "at most 0.01 nats a token",
        "found": "+0.0487 nats [+0.0402, +0.0569]",
        "missed_by": "0.0387 nats",
    },
    {
        "name": "told, not required: words for groups of people become likelier",
        "is_passed": True,
        "expected": "nothing",
        "found": "3.5 times as likely as before at non-toxic positions",
        "missed_by": None,
    },
]
STAGES = [
    StageSummary(name="read_file", shards=4, shards_cached=4, elapsed_seconds=0.1),
    StageSummary(
        name="generate_continuations", shards=9, shards_cached=1, elapsed_seconds=75, rows_made=900
    ),
]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed on a terminal of 80 columns."""
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(run_commands, "console", console)
    logging.getLogger("eigenshift").setLevel(logging.INFO)
    return output


def test_a_refresh_ends_with_its_result_and_what_was_decided(
    tmp_path: Path, screen: io.StringIO
) -> None:
    """Values above their intervals where there is no room; a check that only tells is no pass."""
    small = build_small_store(str(tmp_path / "store"))
    reference = small.record.find_artifact("evaluation")
    rows = small.artifacts.open(reference).read_table("evaluations.parquet").to_pylist()
    record = small.record.model_copy(update={"checks": CHECKS, "stages": STAGES})
    outcome = RefreshOutcome.from_record(record, small.url, rows, is_new_release=True)
    run_commands._print_stages(outcome.stages)
    run_commands._print_outcome(outcome)
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    told = "\n".join(lines)
    assert max(len(line) for line in lines[: lines.index("Next, try:") - 1]) <= 80
    assert "generate_continuations       9       1  1m 15s        900" in told
    assert "2 stages in 1m 15s; 5 of 13 pieces were cached (1 stage had nothing to do)." in told
    assert "  failed  divergence from the base stays in budget: +0.0487 nats" in told
    assert "  told    words for groups of people become likelier: 3.5 times" in told
    assert "[" not in next(line for line in lines if line.startswith("toxicity "))


def test_with_q_only_the_result_is_told(screen: io.StringIO) -> None:
    """No table of stages."""
    logging.getLogger("eigenshift").setLevel(logging.WARNING)
    run_commands._print_stages(STAGES)
    assert screen.getvalue() == ""


def test_a_comparison_has_one_line_for_each_arm(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are read first; what has no room is named. With room, all of it."""
    arms = [make_arm(name) for name in ("eigenshift", "token_suppression_bias@kl0.02")]
    comparison = ArmComparison(
        run_id="r", store="s", stages=[], arms=arms, evaluations=[], table="t", figure="f"
    )
    run_commands._print_comparison(comparison)
    lines = screen.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("eigenshift ")]) == 3  # tables, twins
    assert "Not shown in 80 columns: in-domain change, TPH" in screen.getvalue()
    wide = Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    monkeypatch.setattr(run_commands, "console", wide)
    run_commands._print_comparison(comparison)
    told = wide.file.getvalue()  # type: ignore[attr-defined]
    assert "Not shown" not in told
    assert "TPH (paper)" in told
