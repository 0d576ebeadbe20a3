"""How strong an edit may be: the largest strength whose cost is within a budget.

Costs are rises of a loss in nats; a budget of +5% perplexity is log(1.05). Looks at costs only:
what is measured, and on what, is the caller's (`patches/cost.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

FIRST_STRENGTH = 0.1
TOLERANCE = 0.05
"""A strength that costs this much less than the budget, relatively, is good enough."""
MAX_TRIES = 10
GROWTH = 2.5
AIM = 0.98
"""Of the budget, where a strength is extrapolated: costs rise a little faster than foreseen."""
PATIENCE, LEAP = 3, 0.15
"""So many strengths beyond the budget are foreseen; then a cost that hardly falls with the strength
is left behind by this factor."""
NEGLIGIBLE = 0.02
"""Of the budget: costs below it say nothing about how costs grow."""


def find_strongest(
    measure: Callable[[float], float],
    budget: float,
    *,
    first: float = FIRST_STRENGTH,
    most: float = math.inf,
    roughly: Callable[[float], float] | None = None,
) -> tuple[float, float]:
    """Search log cost against log strength: a small change costs its square, a large one more.

    Args:
        measure: Strength -> cost in nats; what is not finite is beyond any budget.
        budget: Largest cost, nats.
        first: Strength that is tried first.
        most: No strength beyond this is tried.
        roughly: As `measure`, about, at less work: the search goes there first, and from what it
            found on with `measure`.

    Returns:
        The strength and its cost; strength 0 where none that was tried is within the budget.
    """
    if roughly is not None:
        found, _ = find_strongest(roughly, budget, first=first, most=most)
        first = found or first
    low, low_cost = 0.0, 0.0
    high, high_cost = math.inf, math.inf
    strength = min(first, most)
    n_beyond = 0
    for _ in range(MAX_TRIES):
        cost = measure(strength)
        if math.isfinite(cost) and cost <= budget:
            low, low_cost = strength, cost
            if cost >= budget * (1.0 - TOLERANCE) or strength >= most:
                break
        else:
            high, high_cost = strength, cost if math.isfinite(cost) else math.inf
            n_beyond += 1
        if low == 0.0 and n_beyond > PATIENCE:
            strength *= LEAP
        else:
            strength = min(_choose_next(low, low_cost, high, high_cost, budget), most)
    return low, low_cost


def _choose_next(
    low: float, low_cost: float, high: float, high_cost: float, budget: float
) -> float:
    """The next strength to try, between the ends where both are known."""
    if not math.isfinite(high):
        is_known = low_cost > NEGLIGIBLE * budget
        return low * (min(GROWTH, math.sqrt(AIM * budget / low_cost)) if is_known else GROWTH)
    if low == 0.0:
        return high * max(0.15, math.sqrt(0.9 * budget / high_cost))
    if low_cost > NEGLIGIBLE * budget and math.isfinite(high_cost):
        slope = math.log(high_cost / low_cost) / math.log(high / low)
        guess = low * (AIM * budget / low_cost) ** (1.0 / slope)
        return float(min(max(guess, low * (high / low) ** 0.1), low * (high / low) ** 0.9))
    return math.sqrt(low * high)
