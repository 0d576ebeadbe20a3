"""The form in which texts and words are compared."""

from __future__ import annotations

import unicodedata


def fold_word(word: str) -> str:
    """Compatibility form (NFKC) without case."""
    return unicodedata.normalize("NFKC", word).casefold()


def fold_text(text: str) -> str:
    """Compatibility form without case, single spaces, none around it."""
    return " ".join(fold_word(text).split())
