"""What the stages of a run took."""

from __future__ import annotations

from eigenshift.ledger.runs import StageSummary
from eigenshift.reporting.stage_tables import COLUMNS, summarise_stages, tabulate_stages

STAGES = [
    StageSummary(name="read_file", shards=4, shards_cached=4, elapsed_seconds=0.04),
    StageSummary(
        name="generate_continuations",
        shards=12,
        shards_cached=4,
        elapsed_seconds=221.6,
        rows_made=15_000,
    ),
    StageSummary(name="draw_arms", shards=1, shards_cached=0, elapsed_seconds=0.44),
]


def test_stages_that_made_something_have_a_row() -> None:
    """Seconds, cache hits, and rows where a stage makes any."""
    assert tabulate_stages(STAGES) == [
        ["generate_continuations", "12", "4", "3m 42s", "15,000"],
        ["draw_arms", "1", "0", "0.4s", "-"],
    ]
    assert all(len(row) == len(COLUMNS) for row in tabulate_stages(STAGES))


def test_all_stages_are_summed_up() -> None:
    """Those that had nothing to do are counted."""
    assert summarise_stages(STAGES) == (
        "3 stages in 3m 42s; 8 of 17 pieces were cached (1 stage had nothing to do)."
    )
    assert summarise_stages(STAGES[1:]) == "2 stages in 3m 42s; 4 of 13 pieces were cached."
