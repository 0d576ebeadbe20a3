"""Names of the arms every run compares."""

from __future__ import annotations

BASE_ARM = "base"
AGAIN_ARM = "base_again"
"""The base with other random numbers (A/A): what a difference of nothing looks like."""
RANDOM_ARM = "random_components"
"""As many components, damped as much, drawn at random from the others."""
PATCHED_ARM = "eigenshift"
"""Singular components chosen by the settings."""
PAPER_ARM = "eigenshift_paper"
"""The paper's own number of components, all removed."""
TUNED_ARM = "eigenshift_tuned"
"""The trial that the screening of `tune` finds best within its budget."""
