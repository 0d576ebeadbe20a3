"""Names of arms, taken apart and put into words."""

from __future__ import annotations

import pytest

from eigenshift.base.arms import describe_point, find_intervention, find_point, join_arm


@pytest.mark.parametrize("point", ["", "0.01", "kl0.02"])
def test_name_of_an_arm_is_its_intervention_and_its_point(point: str) -> None:
    """Joined and taken apart again."""
    arm = join_arm("leace", point)
    assert (find_intervention(arm), find_point(arm)) == ("leace", point)


def test_points_in_words() -> None:
    """A budget in percent, the run's own by its number where that is known, a KL as it is."""
    assert describe_point("", 0.05) == "within +5%"
    assert describe_point("", None) == "within the run's budget"
    assert describe_point("0.01", 0.05) == "within +1%"
    assert describe_point("0.005", None) == "within +0.5%"
    assert describe_point("0.07", None) == "within +7%"
    assert describe_point("kl0.02", 0.05) == "at KL 0.02"
