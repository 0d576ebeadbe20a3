"""What each stage of a run took, as a table: from the run's record only.

Returns headings and rows; printing is the command line's, the same for Prefect's UI
`outcomes.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from eigenshift.base.durations import format_duration
from eigenshift.ledger.runs import StageSummary

COLUMNS = ("stage", "pieces", "cached", "took", "rows made")


def tabulate_stages(stages: Sequence[StageSummary]) -> list[list[str]]:
    """One row per stage in which something was made, in their order.

    Args:
        stages: Of a run's record.
    """
    return [
        [
            stage.name,
            str(stage.shards),
            str(stage.shards_cached),
            format_duration(stage.elapsed_seconds),
            f"{stage.rows_made:,}" if stage.rows_made else "-",
        ]
        for stage in stages
        if stage.shards_cached < stage.shards
    ]


def summarise_stages(stages: Sequence[StageSummary]) -> str:
    """One line below the table: all stages together, those that had nothing to do as well."""
    n_idle = sum(stage.shards_cached == stage.shards for stage in stages)
    n_pieces = sum(stage.shards for stage in stages)
    n_cached = sum(stage.shards_cached for stage in stages)
    waited = format_duration(sum(stage.elapsed_seconds for stage in stages))
    line = f"{len(stages)} stages in {waited}; {n_cached:,} of {n_pieces:,} pieces were cached"
    idle = f" ({n_idle} {'stages' if n_idle > 1 else 'stage'} had nothing to do)" if n_idle else ""
    return f"{line}{idle}."
