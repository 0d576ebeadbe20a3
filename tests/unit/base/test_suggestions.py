"""Names that were probably meant."""

from __future__ import annotations

import pytest

from eigenshift.base.suggestions import find_meant, suggest

RUNS = ["20261127T195844.679Z-562220", "20261127T201239.485Z-24bdd9", "20261128T000000.000Z-000aaa"]


@pytest.mark.parametrize(
    ("word", "names", "meant"),
    [
        ("demp", ["default", "demo", "paper"], "demo"),
        ("n_sample", ["n_samples", "n_tokens"], "n_samples"),
        ("DEMO", ["demo"], "demo"),
        ("24bdd9", RUNS, RUNS[1]),
        ("20261127T2012", RUNS, RUNS[1]),
        ("20261127T195844.679Z-562221", RUNS, RUNS[0]),
        ("zorb", ["default", "demo"], None),
        ("", ["demo"], None),
        ("demo", [], None),
    ],
)
def test_a_near_name_is_found(word: str, names: list[str], meant: str | None) -> None:
    """Misspelt, in other capitals, or a part of it that no other has."""
    assert find_meant(word, names) == meant


def test_a_suggestion_is_put_behind_a_sentence() -> None:
    """With its space; nothing where nothing is near."""
    assert suggest("demp", ["demo"]) == " Did you mean 'demo'?"
    assert suggest("zorb", ["demo"]) == ""
