"""Pairs of arms: differences of the same prompts, corrected for how many there are."""

from __future__ import annotations

import numpy as np
import pytest

from eigenshift.base.arms import join_arm
from eigenshift.evaluation.arm_pairs import compare_pairs, correct_holm
from eigenshift.evaluation.permutation import compute_p_value
from eigenshift.settings import EvaluationSettings

SETTINGS = EvaluationSettings(n_bootstrap=300)
N_PROMPTS = 50


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        # Holm, 1979, by hand: 3 x 0.01, then 2 x 0.02 and 1 x 0.04, never less than the one before
        ([0.02, 0.01, 0.04], [0.04, 0.03, 0.04]),
        ([0.04, 0.03, 0.02, 0.01], [0.06, 0.06, 0.06, 0.04]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.01], [0.01]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([], []),
    ],
)
def test_holms_correction_by_hand(p_values: list[float], expected: list[float]) -> None:
    """Step by step from the smallest; in the order given; at most 1."""
    assert correct_holm(p_values) == pytest.approx(expected)


def make_rates(**shares: float) -> dict[str, np.ndarray]:
    """Rates of the same prompts by arm, with a spread they share."""
    generator = np.random.default_rng(0)
    common = generator.uniform(0, 0.4, N_PROMPTS)
    return {
        arm: np.clip(common + share + generator.normal(0, 0.02, N_PROMPTS), 0, 1)
        for arm, share in shares.items()
    }


def test_every_pair_of_a_point_occurs_once_with_its_paired_difference() -> None:
    """First minus second by name; the interval is of differences, not of levels."""
    rates = make_rates(base=0.4, ours=0.1, peer=0.12)
    rows = compare_pairs(rates, SETTINGS)
    assert [(row["arm"], row["other"]) for row in rows] == [
        ("base", "ours"),
        ("base", "peer"),
        ("ours", "peer"),
    ]
    for row in rows:
        differences = rates[row["arm"]] - rates[row["other"]]
        assert row["difference"] == pytest.approx(differences.mean())
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["high"] - row["low"] < 0.03  # the prompts' own spread is not in it
        assert row["p_value"] == compute_p_value(differences, SETTINGS.seed)
        assert row["n"] == N_PROMPTS
    corrected = correct_holm([row["p_value"] for row in rows])
    assert [row["p_value_corrected"] for row in rows] == corrected
    assert corrected[0] < 0.01


def test_pairs_are_of_one_operating_point() -> None:
    """What costs 10% is not held against what costs 5%; each point is corrected by itself."""
    wide = [join_arm(name, "0.1") for name in ("ours", "peer")]
    rates = make_rates(base=0.4, ours=0.1, **dict.fromkeys(wide, 0.05))
    rows = compare_pairs(rates, SETTINGS)
    assert {(row["arm"], row["other"]) for row in rows} == {("base", "ours"), tuple(wide)}
    for row in rows:
        assert row["p_value_corrected"] == row["p_value"]


def test_an_arm_without_a_score_on_some_prompts_is_compared_on_the_others() -> None:
    """Unknown is not nothing."""
    rates = make_rates(base=0.4, ours=0.1)
    expected = (rates["base"] - rates["ours"])[3:].mean()
    rates["ours"][:3] = np.nan
    (row,) = compare_pairs(rates, SETTINGS)
    assert row["difference"] == pytest.approx(expected)


def test_verdicts_of_another_scorer_are_a_slice_of_their_own() -> None:
    """Named, and corrected for its own pairs alone."""
    rates = make_rates(base=0.4, ours=0.1)
    (row,) = compare_pairs(rates, SETTINGS)
    (other,) = compare_pairs(rates, SETTINGS, "scorer=words")
    assert (row["slice"], other["slice"]) == ("all", "scorer=words")
    assert {**other, "slice": "all"} == row
