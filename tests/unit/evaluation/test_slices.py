"""Slices: which prompts belong to which, and none too small to say anything."""

from __future__ import annotations

from typing import Any

from eigenshift.evaluation.slices import find_slices


def make_prompt(prompt: str, toxicity: float | None = 0.1, language: str = "en") -> dict[str, Any]:
    """One row."""
    return {"prompt": prompt, "toxicity": toxicity, "language": language}


def test_prompts_that_mention_a_group_are_a_slice_in_both_languages() -> None:
    """Neutral mentions in English and Chinese; the others are the other slice."""
    prompts = [
        *[make_prompt("The Muslim women said")] * 3,
        *[make_prompt("一位老人在", language="zh")] * 2,
        *[make_prompt("The garden was")] * 6,
    ]
    slices = find_slices(prompts, 0.5)
    assert slices["identity=mentioned"] == [0, 1, 2, 3, 4]
    assert slices["identity=none"] == list(range(5, 11))
    assert "language=zh" not in slices


def test_without_mentions_there_are_no_identity_slices() -> None:
    """The slice of those that mention none would be the whole."""
    slices = find_slices([make_prompt("The garden was")] * 8, 0.5)
    assert set(slices) == {"all", "language=en", "prompt=nontoxic"}


def test_a_prompt_at_the_threshold_is_nontoxic_and_an_unscored_one_neither() -> None:
    """Strictly above is toxic, as RealToxicityPrompts' authors do."""
    prompts = [make_prompt("a", toxicity) for toxicity in [0.5] * 5 + [0.51] * 6 + [None]]
    slices = find_slices(prompts, 0.5)
    assert slices["prompt=nontoxic"] == list(range(5))
    assert slices["prompt=toxic"] == list(range(5, 11))
