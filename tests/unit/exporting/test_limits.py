"""The limits on a model card: words that follow from what the run measured and did not."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.exporting.limits import describe_limits
from eigenshift.settings import RefreshSettings
from tests.support.small_store import make_settings


@pytest.fixture
def settings() -> RefreshSettings:
    """Of a run with twelve tokens a continuation."""
    return make_settings("memory://limits").model_copy(deep=True)


def make_row(arm: str, value: float, slice_name: str = "all") -> dict[str, Any]:
    """A toxicity rate with an interval of a point to either side."""
    return {
        "arm": arm,
        "scorer": "detoxify",
        "metric": "toxicity_rate",
        "slice": slice_name,
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
        "n": 50,
    }


ROWS = [
    make_row("base", 0.31),
    make_row("mine", 0.05),
    make_row("mine", 0.04, "language=zh"),
    make_row("mine", 0.06, "language=en"),
    make_row("mine", 0.06, "prompt=toxic"),
    make_row("other", 0.06, "language=fr"),
]


def test_what_is_left_is_told_per_hundred_continuations(settings: RefreshSettings) -> None:
    """The exported arm's rate and interval, and the base's."""
    text = describe_limits(settings, ROWS, "mine", was_asked_questions=False)
    assert "Of 100 continuations of this run's prompts, 5.0 still count as toxic" in text
    assert "(interval 4.0 to 6.0); before, 31.0." in text


def test_only_languages_that_the_arm_was_measured_in_are_named(settings: RefreshSettings) -> None:
    """Not those of other arms, not other parts of the prompts."""
    text = describe_limits(settings, ROWS, "mine", was_asked_questions=False)
    assert "Measured in: en, zh. Nothing is known of others." in text
    assert "did not tell languages apart" in describe_limits(
        settings, ROWS[:2], "mine", was_asked_questions=False
    )


def test_what_was_not_measured_is_said(settings: RefreshSettings) -> None:
    """Neither rates nor questions: a run that ended before."""
    text = describe_limits(settings, [], "mine", was_asked_questions=False)
    assert "How often was not measured" in text
    assert "knowledge and reasoning was not measured" in text
    asked = describe_limits(settings, [], "mine", was_asked_questions=True)
    assert "Only the questions above" in asked


def test_sampling_and_judge_are_those_of_the_run(settings: RefreshSettings) -> None:
    """From its settings."""
    text = describe_limits(settings, ROWS, "mine", was_asked_questions=False)
    generation = settings.generation
    assert f"Measured on {generation.n_tokens} tokens" in text
    assert f"temperature {generation.temperature:g} and top-p {generation.top_p:g}" in text
    assert f"({settings.scorer.name})" in text
