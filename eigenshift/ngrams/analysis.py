"""Which n-grams of a vocabulary a text has, and where: as scikit-learn's vectorizers count them.

Words are `TfidfVectorizer`'s with its default pattern (two letters or digits and more), and runs of
them; characters are those of its analyzer `char_wb`: runs inside a word that has a space at either
end, so that n-grams know where words begin. A span is (start, end) in characters of the text as
given, also where lower case is longer than what it was made from. Pure functions of strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import chain

WORD = re.compile(r"(?u)\b\w\w+\b")
RUN = re.compile(r"\S+")
REMEMBERED_RUNS = 1 << 15
"""Texts repeat their words: the n-grams of those seen last are kept, for each vocabulary."""

Span = tuple[int, int]
Occurrence = tuple[int, Span]
"""Number of an n-gram in the vocabulary, and where it stands."""


class Unit(str, Enum):
    """What n-grams are runs of."""

    words = "words"
    characters = "characters"


@dataclass(frozen=True)
class Analysis:
    """What counts as an n-gram.

    Attributes:
        unit: Runs of words, or of characters.
        min_length: Fewest units of an n-gram, at least 1.
        max_length: Most units.
        lowercase: Texts are put into lower case first.
    """

    unit: Unit
    min_length: int
    max_length: int
    lowercase: bool = True


class NgramFinder:
    """Finds the n-grams of a vocabulary.

    Args:
        analysis: What counts as an n-gram.
        vocabulary: N-grams; the place of each is its number.
    """

    def __init__(self, analysis: Analysis, vocabulary: Sequence[str]) -> None:
        self._analysis = analysis
        self._numbers = {ngram: number for number, ngram in enumerate(vocabulary)}
        self._lengths = range(analysis.min_length, analysis.max_length + 1)
        self._recall = lru_cache(REMEMBERED_RUNS)(self._find_in_run)
        self._recall_numbers = lru_cache(REMEMBERED_RUNS)(self._list_in_run)

    def list_numbers(self, text: str) -> list[int]:
        """Number of every occurrence of an n-gram, in no particular order."""
        lowered = text.lower() if self._analysis.lowercase else text
        if self._analysis.unit is Unit.characters:
            return list(chain.from_iterable(map(self._recall_numbers, lowered.split())))
        words, get = WORD.findall(lowered), self._numbers.get
        found: list[int | None] = []
        for length in self._lengths:
            runs = zip(*(words[first:] for first in range(length)), strict=False)
            found += map(get, words if length == 1 else map(" ".join, runs))
        return [number for number in found if number is not None]

    def find(self, text: str) -> list[Occurrence]:
        """Every occurrence of an n-gram, and where it stands, in no particular order."""
        lowered = text.lower() if self._analysis.lowercase else text
        is_words = self._analysis.unit is Unit.words
        found = self._find_words(lowered) if is_words else self._find_characters(lowered)
        if len(lowered) == len(text):
            return found
        place = map_to_original(text)
        return [(number, (place(start), place(end - 1) + 1)) for number, (start, end) in found]

    def _find_words(self, text: str) -> list[Occurrence]:
        matches = [(match.group(), match.start(), match.end()) for match in WORD.finditer(text)]
        found = []
        for length in self._lengths:
            for first in range(len(matches) - length + 1):
                run = matches[first : first + length]
                number = self._numbers.get(" ".join([word for word, _, _ in run]))
                if number is not None:
                    found.append((number, (run[0][1], run[-1][2])))
        return found

    def _find_characters(self, text: str) -> list[Occurrence]:
        return [
            (number, (match.start() + start, match.start() + end))
            for match in RUN.finditer(text)
            for number, (start, end) in self._recall(match.group())
        ]

    def _list_in_run(self, run: str) -> tuple[int, ...]:
        return tuple(number for number, _ in self._find_in_run(run))

    def _find_in_run(self, run: str) -> tuple[Occurrence, ...]:
        """N-grams of one run between spaces; a space at its ends lies on the letter beside it."""
        padded = f" {run} "
        found = []
        for length in self._lengths:
            for first in range(max(1, len(padded) - length + 1)):
                number = self._numbers.get(padded[first : first + length])
                if number is not None:
                    start = min(max(0, first - 1), len(run) - 1)
                    end = max(start + 1, min(len(run), first + length - 1))
                    found.append((number, (start, end)))
            if length >= len(padded):  # a run shorter than its n-grams counts once, as a whole
                break
        return tuple(found)


def map_to_original(text: str) -> Callable[[int], int]:
    """Place in the lower case of a text -> place in the text itself.

    Single characters become one or more ("İ" two); which they become may depend on the neighbours
    ("Σ"), how many does not.
    """
    widths = [len(character.lower()) for character in text]
    places = [place for place, width in enumerate(widths) for _ in range(width)]
    return places.__getitem__
