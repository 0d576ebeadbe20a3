"""Which words are labels, and of which kind."""

from __future__ import annotations

import pytest

from eigenshift.datasets.label_words import is_label_word, read_word


@pytest.mark.parametrize(
    ("word", "verdict"),
    [
        ("Toxic", True),
        ("Not Toxic", False),
        ("NON-TOXIC", False),
        ("non_toxic", False),
        ("nontoxic", False),
        ("hate", True),
        ("neutral", False),
        ("non-hateful", False),
        ("no hate", False),
        ("Hate Speech", True),
        ("unsafe", True),
        ("yes", True),
        ("false", False),
        ("none", False),
        ("not neutral", None),
        ("spam", None),
        ("nothing", None),
        ("noble", None),
        ("", None),
    ],
)
def test_words_are_verdicts_where_they_are_known(word: str, verdict: bool | None) -> None:
    """Case, hyphens and underscores do not matter; a negation of a harmless word is none."""
    assert read_word(word) is verdict


def test_only_labels_may_be_shown() -> None:
    """A word that is in no list may be a text."""
    assert is_label_word("Not Toxic")
    assert is_label_word("spam")
    assert not is_label_word("kettle")
