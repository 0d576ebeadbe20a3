"""N-grams of a text, and where they are, against scikit-learn's analyzers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from eigenshift.ngrams.analysis import Analysis, NgramFinder, Unit
from tests.support.linear_scorers import ODD_TEXTS, make_texts

ANALYZERS = {Unit.words: "word", Unit.characters: "char_wb"}
KINDS = [(unit, lengths) for unit in Unit for lengths in ((1, 1), (1, 3), (2, 2), (2, 5), (4, 6))]
ALPHABET = "ab zİΣς ﬁ\t\u00a0\n\x1c'-_.!呆火3éÉ"


def count_reference(unit: Unit, lengths: tuple[int, int], text: str, lowercase: bool) -> Counter:
    """How often each n-gram occurs, by scikit-learn's own analyzer."""
    vectorizer = TfidfVectorizer(analyzer=ANALYZERS[unit], ngram_range=lengths, lowercase=lowercase)
    return Counter(vectorizer.build_analyzer()(text))


def compare(unit: Unit, lengths: tuple[int, int], text: str, lowercase: bool = True) -> None:
    """Every n-gram as often as there, by number and by place."""
    expected = count_reference(unit, lengths, text, lowercase)
    vocabulary = sorted(expected)
    finder = NgramFinder(Analysis(unit, *lengths, lowercase), vocabulary)
    counts = Counter(vocabulary[number] for number in finder.list_numbers(text))
    assert counts == expected
    assert Counter(vocabulary[number] for number, _ in finder.find(text)) == expected


@pytest.mark.parametrize(("unit", "lengths"), KINDS)
def test_they_are_those_of_scikit_learn(unit: Unit, lengths: tuple[int, int]) -> None:
    """Short runs, other scripts, kinds of spaces, letters that become two in lower case."""
    texts, _ = make_texts(40)
    for text in [*texts, *ODD_TEXTS]:
        compare(unit, lengths, text)
        compare(unit, lengths, text, lowercase=False)


@settings(deadline=None)  # a busy machine takes its time
@given(st.text(ALPHABET, max_size=30), st.sampled_from(KINDS))
def test_they_are_those_of_scikit_learn_whatever_the_text(
    text: str, kind: tuple[Unit, tuple[int, int]]
) -> None:
    """Any order of awkward characters."""
    compare(*kind, text)


def test_n_grams_that_are_not_in_the_vocabulary_are_left_out() -> None:
    """As a vectorizer leaves them out that was fitted on other texts."""
    finder = NgramFinder(Analysis(Unit.words, 1, 2), ["garden", "the garden"])
    assert sorted(finder.list_numbers("The garden, the kettle, the garden")) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("unit", "vocabulary", "text", "places"),
    [
        (Unit.words, ["kettle", "the kettle"], "Oh, THE\tkettle!", ["kettle", "THE\tkettle"]),
        (Unit.words, ["zorb fool"], "İ zorb (fool) İ", ["zorb (fool"]),
        (Unit.characters, [" ze", "et", "t "], "a zet  b", ["ze", "et", "t"]),
        (Unit.characters, [" a "], "b a", ["a"]),
        (Unit.characters, [" "], "ab", ["a", "b"]),
        (Unit.characters, ["i̇z"], "aİZ", ["İZ"]),
        (Unit.characters, ["灯"], "İİ呆灯", ["灯"]),
    ],
)
def test_places_are_those_of_the_text_as_it_was_given(
    unit: Unit, vocabulary: list[str], text: str, places: list[str]
) -> None:
    """Without the spaces that are put around words; lower case may be longer than the text."""
    finder = NgramFinder(Analysis(unit, 1, 3), vocabulary)
    assert sorted(text[start:end] for _, (start, end) in finder.find(text)) == sorted(places)
