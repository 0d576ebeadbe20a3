"""The types every reader shares, and how single cells become labels, numbers and lists.

A format module turns each record of a file into exactly one `Sample` or `Rejection`, in file order;
`ingestion.py` counts them and writes the tables. Details of a rejection say what was expected and
found by number, position or type: a cell's content may be offensive and is never repeated.
What makes a whole text unusable (empty, too long, repeated) is `screening.py`'s.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

from eigenshift.base.errors import DatasetError

INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
CANONICAL_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
# An exponent needs a point or a sign: "5e10" may be a hexadecimal name.
DECIMAL = re.compile(r"[+-]?\d+(\.\d*([eE][+-]?\d{1,3})?|[eE][+-]\d{1,3})", re.ASCII)
MAX_NUMBER_CHARACTERS = 32
TRUE_WORDS = frozenset({"true", "yes"})
FALSE_WORDS = frozenset({"false", "no"})
COLUMN_NAME = re.compile(r"[A-Za-z_][\w.@-]{0,39}", re.ASCII)
# fmt: off
KNOWN_COLUMNS = frozenset({
    "id", "text", "comment", "comment_text", "content", "sentence", "prompt", "continuation",
    "output", "generation", "label", "labels", "lang", "language", "toxic", "toxicity",
    "target", "score", "split", "index", "category", "topic", "class", "title", "severe_toxic",
    "obscene", "threat", "insult", "identity_hate", "severe_toxicity", "is_toxic",
})
# fmt: on


class Reason(str, Enum):
    """Why a record was rejected: the codes in `rejected_rows.reason`."""

    bad_encoding = "bad_encoding"
    bad_json = "bad_json"
    contradictory_labels = "contradictory_labels"
    duplicate_id = "duplicate_id"
    duplicate_text = "duplicate_text"
    empty_text = "empty_text"
    label_missing = "label_missing"
    label_out_of_range = "label_out_of_range"
    label_unreadable = "label_unreadable"
    missing_field = "missing_field"
    no_labels_row = "no_labels_row"
    not_a_paragraph = "not_a_paragraph"
    text_too_long = "text_too_long"
    unclosed_quote = "unclosed_quote"
    unscored = "unscored"
    wrong_column_count = "wrong_column_count"


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it stands in the file: 1-based number (header not counted) and its cells."""

    source_row: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One record mapped to what all sources have in common."""

    source_row: int
    text: str
    is_toxic: bool | None = None
    toxicity: float | None = None
    language: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejection:
    """One record that cannot be used, and why."""

    source_row: int
    reason: Reason
    detail: str


class RejectedRecordError(Exception):
    """Raised while one record is mapped; becomes a `Rejection`, never leaves this package."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


Item = Sample | Rejection
Reader = Callable[[str], Iterator[Item]]
"""Reads one file, given its path or URL."""


@dataclass(frozen=True, slots=True)
class SourceInput:
    """One file (or one split of a hub's dataset), ready to be read."""

    uri: str
    sha256: str
    n_bytes: int
    read: Callable[[], Iterator[Item]]


def map_records(
    records: Iterable[Record | Rejection], map_record: Callable[[Record], Sample]
) -> Iterator[Item]:
    """Map each record; what `map_record` refuses becomes a rejection of the same row."""
    for record in records:
        if isinstance(record, Rejection):
            yield record
            continue
        try:
            yield map_record(record)
        except RejectedRecordError as error:
            yield Rejection(record.source_row, error.reason, error.detail)


def check_columns(place: str, found: Sequence[str], required: Collection[str]) -> None:
    """Check that a file has the columns its format needs.

    Raises:
        DatasetError: A column is missing. The columns found are named only if this is a header
            beyond doubt: the first record of a file without one is a text.
    """
    if set(required) <= set(found):
        return
    if KNOWN_COLUMNS & set(found):
        shown = [name if COLUMN_NAME.fullmatch(name) else "(another)" for name in found]
        description = f"found {', '.join(shown)}. The file is in another schema"
    else:
        description = (
            f"found {len(found)} column(s), none with a known name (not shown: this may be a row "
            "of text). The file is in another schema, or has no header"
        )
    raise DatasetError(
        f"{place}: expected the columns {', '.join(sorted(required))}, {description}. Set the "
        "source's `format` (or `columns`) to what the file holds, or correct its header."
    )


def name_columns(header: Sequence[str]) -> list[str]:
    """Give every column a name of its own: unnamed ones by position, repeated ones a suffix."""
    names: list[str] = []
    for position, cell in enumerate(header):
        name = base = cell.strip() or f"column_{position}"
        repeat = 1
        while name in names:
            repeat += 1
            name = f"{base}_{repeat}"
        names.append(name)
    return names


def require_text(value: object, column: str) -> str:
    """Return a value that must be text.

    Raises:
        RejectedRecordError: It is missing or of another type.
    """
    if isinstance(value, str):
        return value
    found = "nothing" if value is None else type(value).__name__
    raise RejectedRecordError(Reason.missing_field, f"{column}: expected text, found {found}")


def parse_binary_label(value: object, column: str) -> bool:
    """Read a 0/1 label; -1 is how Kaggle marks rows that were never scored.

    Raises:
        RejectedRecordError: The label is missing, unscored, out of range or no number.
    """
    number = _parse_number(value, column)
    if number == -1:
        raise RejectedRecordError(Reason.unscored, f"{column}: expected 0 or 1, found -1")
    if number not in (0, 1):
        raise RejectedRecordError(
            Reason.label_out_of_range, f"{column}: expected 0 or 1, found {number:g}"
        )
    return bool(number)


def parse_score(value: object, column: str) -> float:
    """Read a score from 0 to 1.

    Raises:
        RejectedRecordError: The score is missing, unscored (-1), out of range or no number.
    """
    number = float(_parse_number(value, column))
    if number == -1:
        raise RejectedRecordError(Reason.unscored, f"{column}: expected 0 to 1, found -1")
    if not 0.0 <= number <= 1.0:
        raise RejectedRecordError(
            Reason.label_out_of_range, f"{column}: expected 0 to 1, found {number:g}"
        )
    return number


def parse_label(value: object, column: str, threshold: float) -> tuple[bool, float | None]:
    """Read a label of unknown kind: 0/1 and true/false are verdicts, decimals are scores.

    Returns:
        The verdict, and the score if the label was one.

    Raises:
        RejectedRecordError: As for `parse_binary_label`.
    """
    number = _parse_number(value, column)
    if isinstance(number, int):
        return parse_binary_label(number, column), None
    score = parse_score(number, column)
    return score >= threshold, score


def is_missing(value: object) -> bool:
    """Whether a label was left out: nothing, an empty cell, or NaN as pandas writes nothing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _parse_number(value: object, column: str) -> int | float:
    """Read a cell or a JSON value as a number; an int only where it was written as one."""
    if isinstance(value, str):
        value = _parse_number_text(value.strip())
    elif isinstance(value, bool):
        value = int(value)
    if is_missing(value):
        raise RejectedRecordError(
            Reason.label_missing, f"{column}: expected a label, found an empty cell"
        )
    if isinstance(value, int | float):
        return value
    size = f"text of {len(value)} characters" if isinstance(value, str) else type(value).__name__
    raise RejectedRecordError(Reason.label_unreadable, f"{column}: expected a number, found {size}")


def _parse_number_text(text: str) -> int | float | str:
    if INTEGER.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text):
        return float(text)
    if text.lower() in TRUE_WORDS:
        return 1
    if text.lower() in FALSE_WORDS:
        return 0
    return text


def parse_attributes(values: Mapping[str, str], *, leave_out: Collection[str]) -> dict[str, Any]:
    """Parse all other cells of a record: integers and decimals as numbers, the rest as text.

    `id` stays text, digits or not: one column keeps one type.
    """
    return {
        name: cell if name == "id" else parse_cell(cell)
        for name, cell in values.items()
        if name not in leave_out
    }


def parse_cell(cell: str) -> int | float | str:
    """Parse one cell; only what reads back the same becomes an integer ("007" stays text)."""
    return _parse_short_cell(cell) if 0 < len(cell) <= MAX_NUMBER_CHARACTERS else cell


@lru_cache(maxsize=100_000)  # tables of scores repeat a few values millions of times
def _parse_short_cell(cell: str) -> int | float | str:
    if CANONICAL_INTEGER.fullmatch(cell):
        return int(cell)
    if DECIMAL.fullmatch(cell) and math.isfinite(number := float(cell)):
        return number
    return cell


def parse_list(cell: str) -> list[Any] | str:
    """Parse a Python list written into a cell, e.g. "[0, 1]"; anything else stays text."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return value if isinstance(value, list) else cell


def encode_attributes(attributes: Mapping[str, Any]) -> str:
    """Write attributes as JSON that DuckDB can read: keys sorted, characters as they are.

    NaN and infinities become null and half a surrogate pair becomes U+FFFD: JSON has neither, and
    one such row would fail every query over the column.

    Raises:
        RejectedRecordError: They are nested deeper than can be written.
    """
    try:
        try:
            text = ENCODER.encode(attributes)
            text.encode()
        except ValueError:
            text = ENCODER.encode(_replace_unwritable(attributes))
    except RecursionError:
        raise RejectedRecordError(
            Reason.bad_json, "expected values that can be kept, found them nested too deep"
        ) from None
    return text


def _replace_unwritable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_replace_unwritable(key): _replace_unwritable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_unwritable(item) for item in value]
    return value


def _to_json(value: object) -> str:
    """Dates, decimals and bytes of Parquet columns, as text."""
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


ENCODER = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, allow_nan=False, check_circular=False, default=_to_json
)
