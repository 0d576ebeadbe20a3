"""JSON files -> records: one object a line, an array of objects, or objects one after another.

A line that is not UTF-8, not JSON or not an object is rejected by its number, and so is a member of
an array that is no object. An array is read into memory, and ends where its JSON does: what comes
after an error in it cannot be told apart. Blank lines are no records. What the fields mean belongs
to the format modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.records import Reason, Record, RejectedRecordError, Rejection

UTF8_BOM = b"\xef\xbb\xbf"


def is_json(head: bytes) -> bool:
    """Whether a text that begins like this is JSON objects rather than anything else."""
    content = head.removeprefix(UTF8_BOM).lstrip()
    first, second = content[:1], content[1:].lstrip()[:1]
    return (first, second) in ((b"[", b"{"), (b"{", b'"'), (b"{", b"}"))


def read_json(handle: IO[bytes], uri: str) -> Iterator[Record | Rejection]:
    """Read a file of JSON objects, whichever way they are put together.

    Raises:
        DatasetError: It is an array, or one object, that is no list of records.
    """
    first = handle.readline().removeprefix(UTF8_BOM)
    while first and not first.strip():
        first = handle.readline()
    second = handle.readline()
    if _is_document(first.strip(), second.strip()):
        yield from _read_document(first + second + handle.read(), uri)
        return
    if not second.strip():
        _refuse_columns(first, uri)
    yield from _read_lines(chain([first, second], handle))


def _is_document(first: bytes, second: bytes) -> bool:
    """Whether it is an array, or an object over several lines, by its first two lines."""
    if first.startswith(b"["):
        return first == b"[" or is_json(first)
    goes_on = not first.endswith(b"}") and not second.startswith(b"{")
    return (first == b"{" or is_json(first)) and goes_on


def _refuse_columns(line: bytes, uri: str) -> None:
    """Pandas writes a table as one object of columns, each an object of rows by number.

    Raises:
        DatasetError: This line is one.
    """
    try:
        values = _parse_object(line.strip()).values()
    except RejectedRecordError:
        return
    if values and all(
        isinstance(value, dict) and value and all(map(str.isdigit, value)) for value in values
    ):
        raise DatasetError(
            f"{uri}: expected JSON objects, one for each text, found one object of columns. With "
            "pandas, write to_json(orient='records', lines=True)."
        )


def _read_lines(lines: Iterator[bytes]) -> Iterator[Record | Rejection]:
    number = 0
    for line in lines:
        content = line.strip()
        if not content:
            continue
        number += 1
        try:
            yield Record(number, _parse_object(content))
        except RejectedRecordError as error:
            yield Rejection(number, error.reason, error.detail)


def _read_document(content: bytes, uri: str) -> Iterator[Record | Rejection]:
    """The objects of an array, or of several documents one after another."""
    found = list(_parse_documents(content, uri))
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    elif len(found) == 1 and isinstance(found[0], dict):
        raise DatasetError(
            f"{uri}: expected JSON objects, one for each text, found one object with "
            f"{len(found[0])} members. Texts are under its members. Write them one a line, or as "
            "an array; with pandas by to_json(orient='records', lines=True)."
        )
    for number, value in enumerate(found, start=1):
        try:
            yield Record(number, _require_object(value))
        except RejectedRecordError as error:
            yield Rejection(number, error.reason, error.detail)


def _parse_documents(content: bytes, uri: str) -> Iterator[Any]:
    place = 0
    try:
        text = content.decode("utf-8").rstrip()
        while place < len(text):
            value, place = DECODER.raw_decode(text, place)
            yield value
            while place < len(text) and text[place].isspace():
                place += 1
    except UnicodeDecodeError as error:
        raise _explain_damage(uri, f"{error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _explain_damage(uri, f"an error at character {error.pos}") from None
    except RejectedRecordError as error:
        raise _explain_damage(uri, error.detail.rpartition("found ")[2]) from None
    except (ValueError, RecursionError):
        raise _explain_damage(uri, "a number too long or values nested too deep") from None


def _explain_damage(uri: str, found: str) -> DatasetError:
    return DatasetError(
        f"{uri}: expected a JSON array of objects in UTF-8, found {found}. It is damaged or cut "
        "short. Fetch it again, or write one object a line: then one bad line costs one row."
    )


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        value = DECODER.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RejectedRecordError(
            Reason.bad_encoding, f"expected UTF-8, found {error.reason} at byte {error.start}"
        ) from None  # these errors carry the line
    except json.JSONDecodeError as error:
        raise RejectedRecordError(
            Reason.bad_json, f"expected JSON, found an error at character {error.pos}"
        ) from None
    except (ValueError, RecursionError):
        raise RejectedRecordError(
            Reason.bad_json, "expected JSON, found a number too long or values nested too deep"
        ) from None
    return _require_object(value)


def _require_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RejectedRecordError(
            Reason.bad_json, f"expected a JSON object, found {type(value).__name__}"
        )
    return value


def _parse_constant(name: str) -> float | None:
    """Python writes NaN for a missing number; infinities stay, to be refused as labels."""
    return None if name == "NaN" else float(name)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python takes the last of two members of one name, other readers the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RejectedRecordError(
            Reason.bad_json, "expected each name once in an object, found one twice"
        )
    return found


DECODER = json.JSONDecoder(parse_constant=_parse_constant, object_pairs_hook=_make_object)
