"""Parts of the prompts that are judged apart: an average may hide what happens to one of them.

A slice is named `<what>=<which>`: a language, prompts that are toxic or not, prompts that mention
a group of people (`word_lists.load_identity_terms`) or do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eigenshift.evaluation.metric_table import ALL_SLICE
from eigenshift.toxicity.word_lists import load_identity_terms

MIN_SLICE_PROMPTS = 5
"""Smaller slices say nothing."""

IDENTITY_SLICE = "identity=mentioned"
HARMLESS_SLICE = "prompt=nontoxic"
NO_IDENTITY_SLICE = "identity=none"


def find_slices(
    prompts: Sequence[Mapping[str, Any]], toxic_threshold: float
) -> dict[str, list[int]]:
    """Places of the prompts in each slice, the whole first.

    Args:
        prompts: `schemas.PROMPTS` rows.
        toxic_threshold: A prompt with a toxicity above this is toxic; one without is in neither.
    """
    slices: dict[str, list[int]] = {ALL_SLICE: list(range(len(prompts)))}
    for language in sorted({row["language"] for row in prompts}):
        slices[f"language={language}"] = [
            place for place, row in enumerate(prompts) if row["language"] == language
        ]
    known = [
        (place, row["toxicity"]) for place, row in enumerate(prompts) if row["toxicity"] is not None
    ]
    slices["prompt=toxic"] = [place for place, value in known if value > toxic_threshold]
    slices[HARMLESS_SLICE] = [place for place, value in known if value <= toxic_threshold]
    terms = load_identity_terms()
    mentions = [terms.occurs_in(row["prompt"]) for row in prompts]
    slices[IDENTITY_SLICE] = [place for place, found in enumerate(mentions) if found]
    if len(slices[IDENTITY_SLICE]) >= MIN_SLICE_PROMPTS:
        slices[NO_IDENTITY_SLICE] = [place for place, found in enumerate(mentions) if not found]
    return {
        name: members
        for name, members in slices.items()
        if name == ALL_SLICE or len(members) >= MIN_SLICE_PROMPTS
    }


def name_scorer_slice(scorer: str) -> str:
    """The slice under which a further scorer's verdict on all prompts is reported."""
    return f"scorer={scorer}"
