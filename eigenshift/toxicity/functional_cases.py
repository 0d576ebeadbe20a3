"""Functional cases: short texts that each test one thing a scorer should know.

In the manner of HateCheck (Röttger et al. 2021, arXiv 2012.15606): negation, reclaimed words,
counter speech, spellings. Reads a file of text, label and functionality; how a scorer does on them
is `evaluation/scorer_measurement.py`'s. Texts never leave this room but to a scorer.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenshift.base.errors import SettingsError
from eigenshift.store.source_files import fetch_path, has_protocol

SETTING = "scorer_quality.functional_cases"
COLUMNS = {
    "text": ("text", "test_case"),
    "label": ("label", "label_gold"),
    "functionality": ("functionality",),
}
"""What is read -> names of its column, those of HateCheck's own file second."""
TOXIC_LABELS = frozenset({"1", "1.0", "true", "yes", "toxic", "hateful", "hate"})
OTHER_LABELS = frozenset(
    {"0", "0.0", "false", "no", "nontoxic", "non-toxic", "not toxic", "non-hateful", "not hateful"}
)


@dataclass(frozen=True)
class FunctionalCase:
    """One case.

    Attributes:
        text: May be offensive.
        is_toxic: Its label.
        functionality: Name of what it tests.
    """

    text: str
    is_toxic: bool
    functionality: str


def require_case_file(uri: str) -> None:
    """Refuse a path that is no file; what is remote is found out when it is fetched.

    Raises:
        SettingsError: There is no such file.
    """
    if not has_protocol(uri) and not Path(uri).is_file():
        raise SettingsError(
            f"{uri}: expected a file of cases, found none. Check the path ({SETTING})."
        )


def read_cases(uri: str) -> list[FunctionalCase]:
    """Read a file of cases: .csv, .tsv, or .jsonl with an object a line.

    Raises:
        SettingsError: There is no such file, it lacks a column, or a row lacks a value or has a
            label that is not known.
    """
    require_case_file(uri)
    path = fetch_path(uri)
    try:
        rows = list(_parse(path))
    except (ValueError, csv.Error) as error:  # a JSON or Unicode error is a ValueError
        raise SettingsError(
            f"{uri}: expected a .csv, .tsv or .jsonl file in UTF-8, found {type(error).__name__}. "
            f"Convert the file ({SETTING})."
        ) from None  # the error would quote the file
    if not rows:
        raise SettingsError(f"{uri}: expected cases, found none. Check {SETTING}.")
    names = {what: _find_column(uri, rows[0], what) for what in COLUMNS}
    return [_read_case(uri, number, row, names) for number, row in enumerate(rows, start=1)]


def _parse(path: Path) -> Iterator[Mapping[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".jsonl", ".json"):
        for line in filter(str.strip, text.splitlines()):
            document = json.loads(line)
            if not isinstance(document, dict):
                raise ValueError
            yield document
        return
    delimiter = "\t" if path.suffix == ".tsv" else ","
    yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def _find_column(uri: str, row: Mapping[str, Any], what: str) -> str:
    for name in COLUMNS[what]:
        if name in row:
            return name
    known: Sequence[str] = [*(" or ".join(names) for names in COLUMNS.values())]
    raise SettingsError(
        f"{uri}: expected columns {', '.join(known)}, found none of {what}. Rename the file's "
        f"columns ({SETTING})."
    )


def _read_case(
    uri: str, number: int, row: Mapping[str, Any], names: Mapping[str, str]
) -> FunctionalCase:
    text, label, functionality = (row.get(names[what]) for what in COLUMNS)
    folded = str(label).strip().casefold()
    is_known = folded in TOXIC_LABELS or folded in OTHER_LABELS
    if not is_known or not str(text or "").strip() or not functionality:
        raise SettingsError(
            f"{uri}, case {number}: expected a text, a functionality and a label (toxic, hateful, "
            "1; or nontoxic, non-hateful, 0), found a row that lacks one of them. Correct the file "
            f"({SETTING})."
        )
    return FunctionalCase(str(text), folded in TOXIC_LABELS, str(functionality))
