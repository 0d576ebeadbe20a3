"""Names of the arms every run compares."""

from __future__ import annotations

BASE_ARM = "base"
AGAIN_ARM = "base_again"
"""The base with other random numbers (A/A): what a difference of nothing looks like."""
RANDOM_ARM = "random_components"
"""As many components, damped as much, drawn at random from the others."""
PATCHED_ARM = "eigenshift"
"""Singular components chosen by the settings; what every run before `patch.intervention` judged."""
SINGULAR_ARMS = (PATCHED_ARM, "eigenshift_centered")
"""Those that damp the singular components which the component table selects."""
SUPPRESSION_ARM = "token_suppression"
"""A word filter in the weights, of the same budget: what a study of components has to beat."""
PAPER_ARM = "eigenshift_paper"
"""The paper's own number of components, all removed."""
TUNED_ARM = "eigenshift_tuned"
"""The trial that the screening of `tune` finds best within its budget."""


def join_arm(intervention: str, point: str) -> str:
    """Name of an intervention's arm at an operating point, empty for the run's own budget."""
    return f"{intervention}@{point}" if point else intervention


def find_point(arm: str) -> str:
    """The operating point in an arm's name, empty for the run's own budget."""
    return arm.partition("@")[2]


def find_intervention(arm: str) -> str:
    """An arm's name without its operating point."""
    return arm.partition("@")[0]


def describe_point(point: str, own_budget: float | None) -> str:
    """An operating point in words.

    Args:
        point: As `find_point` gives it.
        own_budget: Relative rise of perplexity that the run itself allows, where it is known.
    """
    if point.startswith("kl"):
        return f"at KL {point.removeprefix('kl')}"
    budget = float(point) if point else own_budget
    return "within the run's budget" if budget is None else f"within +{100 * budget:.3g}%"
