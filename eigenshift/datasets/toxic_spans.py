"""Toxic Spans (SemEval-2021 task 5) -> samples: toxic posts whose toxic words are marked.

Reads `spans`, a list of the positions of toxic characters, and `text`. All posts were rated toxic,
also those in which no words were marked. The attribute `spans` becomes a list of [start, end]
pairs, in characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from eigenshift.datasets.containers import read_records
from eigenshift.datasets.records import (
    Reader,
    Reason,
    Record,
    RejectedRecordError,
    Sample,
    map_records,
    parse_attributes,
    parse_list,
    require_text,
)
from eigenshift.settings import SourceSettings

TEXT_COLUMN = "text"
SPANS_COLUMN = "spans"


def make_toxic_spans_reader(_: SourceSettings) -> Reader:
    """Reader of Toxic Spans files."""
    return lambda uri: map_records(read_records(uri, (SPANS_COLUMN, TEXT_COLUMN)), _map_record)


def _map_record(record: Record) -> Sample:
    text = require_text(record.values.get(TEXT_COLUMN), TEXT_COLUMN)
    attributes = parse_attributes(record.values, leave_out=(TEXT_COLUMN, SPANS_COLUMN))
    spans = join_positions(_parse_positions(record.values.get(SPANS_COLUMN), len(text)))
    return Sample(
        source_row=record.source_row,
        text=text,
        is_toxic=True,
        attributes={**attributes, SPANS_COLUMN: [list(span) for span in spans]},
    )


def _parse_positions(cell: object, n_characters: int) -> list[int]:
    found = parse_list(cell) if isinstance(cell, str) else cell
    if not isinstance(found, list) or not all(isinstance(place, int) for place in found):
        raise RejectedRecordError(
            Reason.label_unreadable, f"{SPANS_COLUMN}: expected a list of positions, found another"
        )
    outside = [place for place in found if not 0 <= place < n_characters]
    if outside:
        raise RejectedRecordError(
            Reason.label_out_of_range,
            f"{SPANS_COLUMN}: expected positions below {n_characters}, found {outside[0]}",
        )
    return found


def join_positions(positions: Iterable[int]) -> list[tuple[int, int]]:
    """Positions of single characters -> spans (start, end) without gaps."""
    ordered = sorted(set(positions))
    breaks = [place for place, (one, other) in enumerate(pairwise(ordered), 1) if other > one + 1]
    edges = [0, *breaks, len(ordered)]
    return [(ordered[first], ordered[last - 1] + 1) for first, last in pairwise(edges) if last]
