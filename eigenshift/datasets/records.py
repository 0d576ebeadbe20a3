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
from eigenshift.datasets.label_words import is_label_word, read_word

SAVED_TO_DISK = ("dataset_dict.json", "state.json")
"""Files by which a folder that `datasets` saved is known."""
INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
CANONICAL_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
# An exponent needs a point or a sign: "5e10" may be a hexadecimal name.
DECIMAL = re.compile(r"[+-]?\d+(\.\d*([eE][+-]?\d{1,3})?|[eE][+-]\d{1,3})", re.ASCII)
MAX_NUMBER_CHARACTERS = 32
# A comma after 0 or 1, or before other than three digits, cannot part thousands.
DECIMAL_COMMA = re.compile(r"[+-]?([01],\d+|\d{1,3},(\d{1,2}|\d{4,}))", re.ASCII)
PERCENTAGE = re.compile(r"\d{1,3}([.,]\d+)? ?%", re.ASCII)
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
    """One record mapped to what all sources have in common.

    `label` is what stood in its label's column, as an error may show it (`describe_label`);
    `is_line` says that it is a line of plain text, which may be blank.
    """

    source_row: int
    text: str
    is_toxic: bool | None = None
    toxicity: float | None = None
    language: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    is_line: bool = False


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
    if has_columns(found, required):
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


def has_columns(found: Collection[str], required: Collection[str]) -> bool:
    """Whether all columns are there; of a nested one ("prompt.text") its rows show the field."""
    return all(name in found or name.partition(".")[0] in found for name in required)


def check_repeats(place: str, found: Sequence[str], required: Collection[str]) -> None:
    """Check that no column that is read is there twice: which of the two is meant is not known.

    Raises:
        DatasetError: One is.
    """
    needed = {part for name in required for part in (name, name.partition(".")[0])}
    repeated = sorted(name for name in needed if found.count(name) > 1)
    if repeated:
        raise DatasetError(
            f"{place}: expected one column {repeated[0]}, found {found.count(repeated[0])} of that "
            "name. Which of them is meant is not guessed. Rename or remove all but one."
        )


def find_value(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field of a nested one ("prompt.text"); None if there is none.

    A column whose own name has the dot goes first. A cell that holds a JSON object is nested too.
    """
    if name in values:
        return values[name]
    column, dot, rest = name.partition(".")
    if not dot or column not in values:
        return None
    found = parse_object(values[column])
    return None if found is None else find_value(found, rest)


def leave_out_value(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """All values but that of a column, or of a field of a nested one."""
    if name in values:
        return {key: value for key, value in values.items() if key != name}
    column, dot, rest = name.partition(".")
    found = parse_object(values.get(column)) if dot else None
    if found is None:
        return dict(values)
    return {**values, column: leave_out_value(found, rest)}


def parse_object(value: object) -> Mapping[str, Any] | None:
    """A nested value: an object, or a cell in which one is written as JSON or as Python does."""
    if isinstance(value, Mapping):
        return value
    if not (isinstance(value, str) and value.startswith("{") and value.endswith("}")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        if isinstance(found, dict):
            return found
    return None


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
    number = parse_number(value, column)
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
    number = float(parse_number(value, column))
    if number == -1:
        raise RejectedRecordError(Reason.unscored, f"{column}: expected 0 to 1, found -1")
    if not 0.0 <= number <= 1.0:
        raise RejectedRecordError(
            Reason.label_out_of_range, f"{column}: expected 0 to 1, found {number:g}"
        )
    return number


def parse_label(value: object, column: str, threshold: float) -> tuple[bool, float | None]:
    """Read a label of unknown kind: 0/1 and words are verdicts, decimals and shares are scores.

    Returns:
        The verdict, and the score if the label was one.

    Raises:
        RejectedRecordError: As for `parse_binary_label`.
    """
    number = parse_number(value, column)
    if isinstance(number, int):
        return parse_binary_label(number, column), None
    score = parse_score(number, column)
    return score >= threshold, score


def is_missing(value: object) -> bool:
    """Whether a label was left out: nothing, an empty cell, or NaN as pandas writes nothing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def describe_label(value: object) -> str:
    """A label as an error may show it: a number or a known word, else its size or type.

    A cell that is neither may be a text.
    """
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value).lower()
    if not isinstance(value, str):
        return type(value).__name__
    return _describe_cell(value.strip())


@lru_cache(maxsize=10_000)
def _describe_cell(cell: str) -> str:
    number = _parse_number_text(cell)
    if is_label_word(cell) or (not isinstance(number, str) and len(cell) <= MAX_NUMBER_CHARACTERS):
        return cell
    return f"text of {len(cell)} characters"


def parse_number(value: object, column: str) -> int | float:
    """Read a cell or a JSON value as a number; an int only where it was written as one.

    Raises:
        RejectedRecordError: It is missing or no number.
    """
    cell = value
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
    raise RejectedRecordError(
        Reason.label_unreadable, f"{column}: expected a number, found {describe_label(cell)}"
    )


def _parse_number_text(text: str) -> int | float | str:
    if INTEGER.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text):
        return float(text)
    if DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    if PERCENTAGE.fullmatch(text):
        return float(text.rstrip("% ").replace(",", ".")) / 100
    verdict = read_word(text) if len(text) <= MAX_NUMBER_CHARACTERS else None
    return text if verdict is None else int(verdict)


def parse_attributes(values: Mapping[str, Any], *, leave_out: Collection[str]) -> dict[str, Any]:
    """Parse all other cells of a record: integers and decimals as numbers, the rest as text.

    `id` stays text, digits or not: one column keeps one type. Values that have a type keep it.
    """
    return {
        name: parse_cell(cell) if isinstance(cell, str) and name != "id" else cell
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
