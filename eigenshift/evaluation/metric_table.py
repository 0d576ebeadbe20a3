"""Rows of an evaluation: how one is written, and look-up by arm, metric and slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.bootstrap import Estimate

ALL_SLICE = "all"


class MetricTable:
    """`schemas.EVALUATIONS` rows by arm, metric and slice."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = {(row["arm"], row["metric"], row["slice"]): row for row in rows}

    @property
    def arms(self) -> list[str]:
        """Arms of which anything was measured, in the order of the rows."""
        return list(dict.fromkeys(arm for arm, _, _ in self._rows))

    def get(self, arm: str, metric: str, slice_name: str = ALL_SLICE) -> Mapping[str, Any] | None:
        """Return one row, or None if it was not measured."""
        return self._rows.get((arm, metric, slice_name))

    def find(self, arm: str, metric: str, slice_name: str = ALL_SLICE) -> Mapping[str, Any]:
        """Return one row.

        Raises:
            EvaluationError: It was not measured.
        """
        row = self.get(arm, metric, slice_name)
        if row is None:
            raise EvaluationError(
                f"evaluation: expected metric {metric} of arm {arm} ({slice_name}), found none. "
                "The evaluation was made with other arms; start the run again."
            )
        return row


def describe_metric(
    arm: str, scorer: str | None, metric: str, slice_name: str, estimate: Estimate, n: int
) -> dict[str, Any]:
    """One row of `schemas.EVALUATIONS`."""
    return {
        "arm": arm,
        "scorer": scorer,
        "metric": metric,
        "slice": slice_name,
        **estimate.as_dict(),
        "n": n,
    }
