"""Words of a text and where they lie; a run of Chinese characters has no spaces to tell its words.

Spans are (start, end) in characters. Pure functions of strings.
"""

from __future__ import annotations

import re

MAX_HAN_WINDOW = 4
WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’\-][^\W_\u3400-\u9fff]+)*")
HAN = re.compile(r"[\u3400-\u9fff]")

Span = tuple[int, int]


def list_words(text: str) -> list[Span]:
    """Spans of the words; each Chinese character is one."""
    return [match.span() for match in WORD.finditer(text)]


def list_windows(text: str) -> list[Span]:
    """Spans that may be a word: single words, and runs of up to four Chinese characters."""
    words = list_words(text)
    windows = list(words)
    for first, (start, _) in enumerate(words):
        for last in range(first + 1, min(first + MAX_HAN_WINDOW, len(words))):
            end = words[last][1]
            if len(HAN.findall(text[start:end])) != end - start:
                break
            windows.append((start, end))
    return windows


def blank(text: str, span: Span) -> str:
    """Replace a span by spaces, so that the positions of the rest stay."""
    start, end = span
    return text[:start] + " " * (end - start) + text[end:]


def keep_only(text: str, span: Span) -> str:
    """The span alone."""
    return text[span[0] : span[1]]
