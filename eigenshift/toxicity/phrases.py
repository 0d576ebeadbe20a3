"""Toxic words by a list: words and phrases looked up at word boundaries, never as substrings.

A phrase is a sequence of words with nothing but spaces, hyphens and the like between them; Chinese
entries are sequences of characters with nothing between them. Case and width of letters do not
matter. The list is never logged or shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from eigenshift.base.text import fold_word
from eigenshift.toxicity.word_spans import HAN, Span

WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_\u3400-\u9fff]+)*")
"""As `word_spans.WORD`, but the parts of a hyphenated word are words of a phrase."""
GAP = re.compile(r"[\s\-_'’]*")


class PhraseList:
    """Words and phrases to find in texts.

    Args:
        entries: One word or phrase each. Those with a sign that no word has ("@", "$") are left
            out, since their remaining letters would match harmless words.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._phrases = {phrase for entry in entries if (phrase := _split(entry))}
        self._longest = max(map(len, self._phrases), default=0)

    def __len__(self) -> int:
        """How many different entries."""
        return len(self._phrases)

    def __repr__(self) -> str:
        """Never the entries themselves."""
        return f"PhraseList({len(self)} entries)"

    def find(self, text: str) -> list[Span]:
        """Spans of the entries in a text, left to right, the longest first, none overlapping."""
        spans = _list_words(text)
        words = [fold_word(text[start:end]) for start, end in spans]
        found, place = [], 0
        while place < len(spans):
            length = self._match(text, spans, words, place)
            if length:
                found.append((spans[place][0], spans[place + length - 1][1]))
            place += max(1, length)
        return found

    def _match(self, text: str, spans: list[Span], words: list[str], first: int) -> int:
        """Words of the longest entry that begins at a word, 0 if none does."""
        longest = 0
        for last in range(first, min(first + self._longest, len(spans))):
            if last > first and not _is_joined(text, spans[last - 1], spans[last]):
                break
            if tuple(words[first : last + 1]) in self._phrases:
                longest = last + 1 - first
        return longest


def _split(entry: str) -> tuple[str, ...]:
    """The words of an entry; none if there is more to it than words."""
    spans = _list_words(entry)
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(entry)]
    gaps = (entry[end:start] for end, start in zip(ends, starts, strict=True))
    if not all(GAP.fullmatch(gap) for gap in gaps):
        return ()
    return tuple(fold_word(entry[start:end]) for start, end in spans)


def _list_words(text: str) -> list[Span]:
    return [match.span() for match in WORD.finditer(text)]


def _is_joined(text: str, one: Span, other: Span) -> bool:
    """Whether what is between two words lets them be one phrase."""
    gap = text[one[1] : other[0]]
    if HAN.match(text[one[0]]) and HAN.match(text[other[0]]):
        return not gap
    return GAP.fullmatch(gap) is not None
