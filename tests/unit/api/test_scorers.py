"""A function as a scorer, and what is one at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.api.scorers import FunctionScorer, has_gradients, load_scorer, take_scorer
from eigenshift.base.errors import ScorerError, SettingsError
from eigenshift.settings import ScorerSettings


def measure_length(texts: list[str]) -> list[float | None]:
    """Longer than ten characters is bad; three cannot be judged."""
    return [None if len(text) == 3 else min(1.0, len(text) / 10) for text in texts]


def test_a_function_judges_texts_in_their_order() -> None:
    """Blank ones are unscored and not shown to it; None is kept as no verdict."""
    found = FunctionScorer(measure_length).score(["abcdefgh", " ", "abc", "ab"])
    assert [score.probability for score in found] == [0.8, None, None, 0.2]
    assert [score.reason for score in found] == [None, "blank text", "no verdict", None]
    assert FunctionScorer(measure_length).name == "measure_length"


@pytest.mark.parametrize("values", [[0.1], [0.1, 1.5], [0.1, float("nan")], [-1, 0]])
def test_values_that_are_no_probabilities_are_refused(values: list[float]) -> None:
    """Rather than averaged."""
    with pytest.raises(ScorerError, match="probability from 0 to 1"):
        FunctionScorer(lambda texts: values).score(["one", "two"])


def test_kinds_of_the_settings_are_loaded(tmp_path: Path) -> None:
    """By kind and fields, or as settings."""
    words = tmp_path / "words.txt"
    words.write_text("grumble\n", encoding="utf-8")
    settings = ScorerSettings(kind="lexicon", words=str(words))
    for scorer in (load_scorer("lexicon", words=str(words)), take_scorer(settings)):
        assert [item.probability for item in scorer.score(["a grumble", "a walk"])] == [1.0, 0.0]
        assert take_scorer(scorer) is scorer
        assert not has_gradients(scorer)
    with pytest.raises(SettingsError, match="needs words"):
        load_scorer("lexicon")


def test_what_is_no_scorer_is_refused() -> None:
    """A number is none."""
    with pytest.raises(ScorerError, match="found a int"):
        take_scorer(3)
