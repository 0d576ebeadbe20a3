"""JSON Lines files -> records: one JSON object a line. Blank lines are no records.

A line that is not UTF-8, not JSON or not an object is rejected by its number. What the fields mean
belongs to the format modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from eigenshift.datasets.records import Reason, Record, RejectedRecordError, Rejection
from eigenshift.store.source_files import open_file

UTF8_BOM = b"\xef\xbb\xbf"


def read_json_lines(uri: str) -> Iterator[Record | Rejection]:
    """Read a file of JSON objects, one a line, with LF or CRLF ends."""
    number = 0
    with open_file(uri) as handle:
        for line_number, line in enumerate(handle):
            content = (line.removeprefix(UTF8_BOM) if line_number == 0 else line).strip()
            if not content:
                continue
            number += 1
            try:
                yield Record(number, _parse_object(content))
            except RejectedRecordError as error:
                yield Rejection(number, error.reason, error.detail)


def _parse_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_parse_constant)
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
    if not isinstance(value, dict):
        raise RejectedRecordError(
            Reason.bad_json, f"expected a JSON object, found {type(value).__name__}"
        )
    return value


def _parse_constant(name: str) -> float | None:
    """Python writes NaN for a missing number; infinities stay, to be refused as labels."""
    return None if name == "NaN" else float(name)
