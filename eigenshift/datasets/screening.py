"""What makes a text unusable whatever its format: empty, damaged, too long, repeated.

Repetition is judged over all files of one source, after normalisation. Of equal texts the first
is kept; where two of them carry opposite labels all are rejected, because which label is right
cannot be known. Knows nothing of files or tables.
"""

from __future__ import annotations

import hashlib
import unicodedata

from eigenshift.base.text import fold_text
from eigenshift.datasets.records import Reason, RejectedRecordError

BLANK_CATEGORIES = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})

Place = tuple[int, int]
"""Where a text stands: number of its file within the source, and its source_row."""


def screen_text(text: str, max_characters: int) -> None:
    """Check a text by itself.

    Raises:
        RejectedRecordError: It is empty, too long, or holds characters no text should.
    """
    if len(text) > max_characters:
        raise RejectedRecordError(
            Reason.text_too_long,
            f"expected at most {max_characters} characters, found {len(text)}",
        )
    if not any(map(_is_visible, text)):
        raise RejectedRecordError(
            Reason.empty_text, f"expected a text, found {len(text)} blank character(s)"
        )
    if "\0" in text:
        raise RejectedRecordError(
            Reason.bad_encoding, f"expected text, found a NUL at character {text.index(chr(0))}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RejectedRecordError(
            Reason.bad_encoding, f"expected text, found half a surrogate pair at {error.start}"
        ) from None  # the encoder's error carries the text


def _is_visible(character: str) -> bool:
    """Neither a space nor a control or format character."""
    return unicodedata.category(character) not in BLANK_CATEGORIES


def digest_text(text: str) -> int:
    """First 64 bits of the sha256 of the normalised text: what sample ids are made of.

    Texts are compared by it too, so ids are unique by construction; among two million texts the
    chance of any collision is about one in ten million.
    """
    return int.from_bytes(hashlib.sha256(fold_text(text).encode()).digest()[:8], "big")


class RepetitionIndex:
    """Remembers every text of a source: first all are added, then each is judged."""

    def __init__(self) -> None:
        self._first: dict[int, Place] = {}
        self._first_labelled: dict[bool, dict[int, Place]] = {False: {}, True: {}}

    def add(self, digest: int, is_toxic: bool | None, place: Place) -> None:
        """Remember a text, its label and where it stands."""
        first = self._first.setdefault(digest, place)
        if is_toxic is not None:
            # the same tuple where possible: there may be millions
            self._first_labelled[is_toxic].setdefault(digest, first if first == place else place)

    def judge(
        self, digest: int, is_toxic: bool | None, place: Place
    ) -> tuple[Reason, Place] | None:
        """Why a text that was added cannot be kept, and because of which other; None if it can."""
        toxic = self._first_labelled[True].get(digest)
        nontoxic = self._first_labelled[False].get(digest)
        if toxic is not None and nontoxic is not None:
            return Reason.contradictory_labels, nontoxic if is_toxic else toxic
        first = self._first[digest]
        return None if first == place else (Reason.duplicate_text, first)
