"""Functional cases are read from files of several forms; their texts are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.toxicity.functional_cases import FunctionalCase, read_cases

EXPECTED = [
    FunctionalCase("a zorbfool, they said", True, "quoted"),
    FunctionalCase("no zorbfool,\nhere", False, "negated"),
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "ours.csv",
            "text,label,functionality\n"
            '"a zorbfool, they said",toxic,quoted\n"no zorbfool,\nhere",nontoxic,negated\n',
        ),
        (
            "hatecheck.csv",
            ",functionality,case_id,test_case,label_gold\n"
            '0,quoted,1,"a zorbfool, they said",hateful\n'
            '1,negated,2,"no zorbfool,\nhere",non-hateful\n',
        ),
        (
            "numbers.tsv",
            "label\ttext\tfunctionality\n"
            '1\ta zorbfool, they said\tquoted\n0\t"no zorbfool,\nhere"\tnegated\n',
        ),
        (
            "lines.jsonl",
            '{"text": "a zorbfool, they said", "label": true, "functionality": "quoted"}\n\n'
            '{"text": "no zorbfool,\\nhere", "label": 0, "functionality": "negated"}\n',
        ),
    ],
)
def test_cases_are_read_from_several_forms(tmp_path: Path, name: str, content: str) -> None:
    """Our columns, HateCheck's, tabs, and an object a line; a text may hold a line break."""
    path = tmp_path / name
    path.write_text("\ufeff" + content if name.endswith("csv") else content, encoding="utf-8")
    assert read_cases(str(path)) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", "text,functionality\nzorbfool,quoted\n", "none of label"),
        ("b.csv", "text,label,functionality\n", "found none"),
        ("c.csv", "text,label,functionality\nzorbfool,zorbfool,quoted\n", "case 1"),
        ("d.csv", "text,label,functionality\nzorbfool,1,\n", "case 1"),
        ("e.jsonl", "[1]\n", "ValueError"),
        ("f.jsonl", '{"text": "zorbfool"', "JSONDecodeError"),
    ],
)
def test_a_file_that_does_not_fit_is_a_clear_error_without_its_texts(
    tmp_path: Path, name: str, content: str, found: str
) -> None:
    """The message names the file and the case, never what is in it."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=found) as caught:
        read_cases(str(tmp_path / name))
    assert name in str(caught.value)
    assert "zorbfool" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the setting it was given in."""
    with pytest.raises(SettingsError, match=r"scorer_quality\.functional_cases"):
        read_cases(str(tmp_path / "nowhere.csv"))
