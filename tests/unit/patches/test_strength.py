"""The strongest within a budget: costs of every shape, few tries, never beyond the budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from eigenshift.patches.strength import MAX_TRIES, TOLERANCE, find_strongest

BUDGET = math.log(1.05)


class Tried:
    """A cost that remembers what was asked of it."""

    def __init__(self, cost: Callable[[float], float]) -> None:
        self.cost = cost
        self.strengths: list[float] = []

    def __call__(self, strength: float) -> float:
        """The cost of a strength."""
        self.strengths.append(strength)
        return self.cost(strength)


SHAPES: dict[str, Callable[[float], float]] = {
    "quadratic": lambda s: 0.4 * s**2,
    "a thousand times dearer": lambda s: 400.0 * s**2,
    "a thousand times cheaper": lambda s: 4e-4 * s**2,
    "faster than quadratic": lambda s: 0.1 * s**2 + 3.0 * s**5,
    "a wall": lambda s: 0.001 * s**2 if s < 0.7 else 50.0 * s,
    "linear": lambda s: 0.2 * s,
    "helpful at first": lambda s: 0.05 * s**2 - 0.01 * s,
    "flat": lambda s: 0.07 * s**0.1,
    "exponential": lambda s: math.expm1(3.0 * s) ** 2,
}
"""Costs by strength, in nats; all reach the budget at some strength."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first", [0.1, 1.0])
def test_the_strength_is_nearly_the_largest_in_budget(shape: str, first: float) -> None:
    """The cost that is told is that of the strength, and within the budget; most of it is spent."""
    tried = Tried(SHAPES[shape])
    strength, cost = find_strongest(tried, BUDGET, first=first)
    assert cost == tried.cost(strength) <= BUDGET
    assert len(tried.strengths) <= MAX_TRIES
    assert all(value > 0 for value in tried.strengths)
    if shape == "a wall":
        assert strength > 0.6
    else:
        assert cost >= BUDGET * (1 - TOLERANCE)


def test_a_square_is_found_at_once() -> None:
    """The root of the ratio is exact where the cost is a square, once it is not negligible."""
    tried = Tried(lambda s: 4.0 * s**2)
    strength, _ = find_strongest(tried, BUDGET)
    assert strength == pytest.approx(math.sqrt(0.98 * BUDGET / 4.0))
    assert len(tried.strengths) == 2


def test_a_strength_that_always_helps_goes_as_far_as_tries_allow() -> None:
    """Every try is stronger; the last one in budget is kept."""
    tried = Tried(lambda s: -0.01 * s)
    strength, cost = find_strongest(tried, BUDGET)
    assert len(tried.strengths) == MAX_TRIES
    assert tried.strengths == sorted(tried.strengths)
    assert (strength, cost) == (tried.strengths[-1], -0.01 * tried.strengths[-1])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_beyond_any_budget(broken: float) -> None:
    """A loss that overflows is never taken; the search goes on below it."""
    tried = Tried(lambda s: 0.01 * s**2 if s < 0.5 else broken)
    strength, cost = find_strongest(tried, BUDGET, first=1.0)
    assert 0.3 < strength < 0.5
    assert cost == 0.01 * strength**2


@pytest.mark.parametrize("cost", [1.0, math.nan, math.inf])
def test_where_nothing_is_in_budget_the_strength_is_nothing(cost: float) -> None:
    """Weaker and weaker, then given up."""
    tried = Tried(lambda _: cost)
    assert find_strongest(tried, BUDGET) == (0.0, 0.0)
    assert len(tried.strengths) == MAX_TRIES
    assert tried.strengths == sorted(tried.strengths, reverse=True)


@pytest.mark.parametrize("first", [0.1, 1.0, 7.0])
def test_no_strength_beyond_the_most_is_tried(first: float) -> None:
    """An edit that cannot be scaled beyond itself is taken whole where that is in budget."""
    tried = Tried(lambda s: 0.001 * s**2)
    assert find_strongest(tried, BUDGET, first=first, most=1.0) == (1.0, 0.001)
    assert max(tried.strengths) == 1.0
    assert tried.strengths.count(1.0) == 1


def test_a_budget_of_nothing_buys_only_what_is_free() -> None:
    """Costs above zero are refused, a cost of exactly zero is not."""
    assert find_strongest(lambda s: s, 0.0) == (0.0, 0.0)
    assert find_strongest(lambda _: 0.0, 0.0)[1] == 0.0


@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
def test_a_rough_search_leaves_little_to_measure(error: float) -> None:
    """From where a measure that is off by a fifth or a third ends, a few exact ones are enough."""
    tried = Tried(lambda s: 0.02 * s**2 + 0.01 * s**4)
    strength, cost = find_strongest(
        tried, BUDGET, first=50.0, roughly=lambda s: error * (0.02 * s**2 + 0.01 * s**4)
    )
    assert BUDGET * (1 - TOLERANCE) <= cost <= BUDGET
    assert cost == tried.cost(strength)
    assert len(tried.strengths) <= 3


@pytest.mark.parametrize("rough", [0.0, math.inf])
def test_a_rough_search_that_is_quite_wrong_is_mended(rough: float) -> None:
    """What it calls free, or beyond any budget, is measured and found all the same."""
    tried = Tried(lambda s: 0.02 * s**2)
    _, cost = find_strongest(tried, BUDGET, first=1.0, most=4.0, roughly=lambda _: rough)
    assert BUDGET * (1 - 0.3) <= cost <= BUDGET
