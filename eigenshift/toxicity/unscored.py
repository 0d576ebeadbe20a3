"""How many continuations may go without a score; counts alone, no scorer is opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eigenshift.base.errors import EvaluationError


def require_scored_shards(facts: Iterable[Mapping[str, Any]], max_share: float, place: str) -> None:
    """As `require_scored`, over shards.

    Args:
        facts: Of each shard's scores.
        max_share: Largest share without a score.
        place: For the error.
    """
    counts = [(found["n_unscored"], found["n_scored"]) for found in facts]
    n_unscored = sum(unscored for unscored, _ in counts)
    require_scored(n_unscored, n_unscored + sum(n for _, n in counts), max_share, place)


def require_scored(n_unscored: int, n_total: int, max_share: float, place: str) -> None:
    """Stop when too many continuations have no score.

    Raises:
        EvaluationError: The share is above the bound.
    """
    if n_total and n_unscored / n_total > max_share:
        raise EvaluationError(
            f"{place}: expected at most {max_share:.1%} unscored continuations, found "
            f"{n_unscored} of {n_total}. They are kept in the generations view with a reason; "
            "look at it, or raise scorer.max_unscored_share."
        )
