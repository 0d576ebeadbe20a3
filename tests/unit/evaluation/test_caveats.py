"""A run is held against its own A/A arm."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.base.arms import AGAIN_ARM
from eigenshift.evaluation.caveats import find_caveats, find_caveats_of_all


def make_row(arm: str, value: float | None) -> dict[str, Any]:
    """A difference with an interval of +-2 points."""
    ends = (None, None) if value is None else (value - 0.02, value + 0.02)
    return {
        "arm": arm,
        "metric": "toxicity_rate_difference",
        "slice": "all",
        "value": value,
        "low": ends[0],
        "high": ends[1],
    }


@pytest.mark.parametrize(
    ("again", "patch", "is_told"),
    [
        (-0.026, -0.02, True),
        (0.026, -0.02, True),
        (-0.02, -0.02, True),
        (-0.01, -0.02, False),
        (0.0, 0.0, False),
        (None, -0.02, False),
        (-0.02, None, False),
    ],
)
def test_chance_as_large_as_the_patch_is_told(
    again: float | None, patch: float | None, is_told: bool
) -> None:
    """In either direction; what could not be computed is no reason."""
    found = find_caveats([make_row(AGAIN_ARM, again), make_row("ours", patch)], "ours")
    assert bool(found) is is_told
    if is_told:
        assert "too small to decide" in found[0]
        assert "eigenshift plan" in found[0]


def test_both_differences_are_in_the_sentence() -> None:
    """In points, with intervals."""
    rows = [make_row(AGAIN_ARM, -0.026), make_row("ours", -0.02)]
    (caveat,) = find_caveats(rows, "ours")
    assert "moves by -2.6 points [-4.6, -0.6], the patch by -2.0 points [-4.0, +0.0]" in caveat


def test_a_run_without_an_a_a_arm_says_nothing() -> None:
    """A store of the release before, or a search."""
    assert find_caveats([make_row("ours", -0.02)], "ours") == []
    assert find_caveats_of_all([make_row("ours", -0.02)], ["ours"]) == []


def test_of_many_arms_those_within_chance_are_named() -> None:
    """One sentence; base and A/A are none of them."""
    arms = {AGAIN_ARM: -0.03, "leace": 0.01, "ours": -0.2, "damp": -0.03}
    rows = [make_row(arm, value) for arm, value in arms.items()]
    (caveat,) = find_caveats_of_all(rows, ["base", *arms])
    assert "these arms from the base: leace, damp." in caveat
    assert find_caveats_of_all(rows, ["ours"]) == []
