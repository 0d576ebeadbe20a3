"""Words of a list are found at word boundaries."""

from __future__ import annotations

import pytest

from eigenshift.toxicity.phrases import PhraseList


def find(entries: list[str], text: str) -> list[str]:
    """The texts of the spans found."""
    return [text[start:end] for start, end in PhraseList(entries).find(text)]


@pytest.mark.parametrize(
    ("entries", "text", "expected"),
    [
        (["ket"], "a kettle, a ket.", ["ket"]),
        (["Old Mill"], "the old   mill, the OLD-MILL, old. mill", ["old   mill", "OLD-MILL"]),
        (["old", "old mill"], "old mill and old bridge", ["old mill", "old"]),
        (["don't"], "they don't wait", ["don't"]),
        (["ｋｅｔ"], "a ket", ["ket"]),
        (["灯瓜"], "一个呆灯瓜在", ["灯瓜"]),
        (["灯瓜"], "灯 瓜", []),
        (["k@t", "$$"], "k t k@t", []),
        ([], "anything", []),
    ],
)
def test_entries_are_found(entries: list[str], text: str, expected: list[str]) -> None:
    """Whole words, any case and width, phrases over spaces and hyphens, the longest first."""
    assert find(entries, text) == expected


def test_a_lexicon_does_not_show_its_entries() -> None:
    """Neither in a log nor in an error."""
    assert repr(PhraseList(["zorbfool", "glimpnit"])) == "PhraseList(2 entries)"
