"""The three Jigsaw schemas (Kaggle 2018, 2019, 2020) -> samples.

- toxic comment: `comment_text`, `toxic` and further 0/1 labels; the test set keeps its labels in a
  second file, joined by id, where -1 means a row was never scored;
- unintended bias: `comment_text`, `target` (share of raters, 0 to 1) and dozens of scores;
- multilingual: `comment_text`, `lang`, `toxic`.

Only the columns named are required; all others, known or not, are kept in the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.containers import read_records
from eigenshift.datasets.records import (
    Reader,
    Reason,
    Record,
    RejectedRecordError,
    Rejection,
    Sample,
    describe_label,
    map_records,
    parse_attributes,
    parse_binary_label,
    parse_score,
    require_text,
)
from eigenshift.settings import SourceSettings
from eigenshift.store.source_files import list_files

TEXT_COLUMN = "comment_text"
LABEL_COLUMN = "toxic"


@dataclass(frozen=True, slots=True)
class LabelsRow:
    """One row of a labels file; `conflict` names a second row with the same id, other labels."""

    source_row: int
    values: Mapping[str, Any]
    conflict: int | None = None


def make_jigsaw_reader(source: SourceSettings) -> Reader:
    """Reader of toxic comment files; reads the labels file, if there is one, once."""
    if source.labels_uri is None:
        required = (TEXT_COLUMN, LABEL_COLUMN)
        return lambda uri: map_records(read_records(uri, required), _map_comment)
    map_record = partial(_map_with_labels, labels=read_labels(source.labels_uri))
    return lambda uri: map_records(read_records(uri, ("id", TEXT_COLUMN)), map_record)


def make_unintended_bias_reader(source: SourceSettings) -> Reader:
    """Reader of unintended bias files."""
    map_record = partial(_map_scored, threshold=source.toxic_threshold)
    return lambda uri: map_records(read_records(uri, (TEXT_COLUMN, "target")), map_record)


def make_multilingual_reader(source: SourceSettings) -> Reader:
    """Reader of multilingual files."""
    required = (TEXT_COLUMN, LABEL_COLUMN, "lang")
    return lambda uri: map_records(read_records(uri, required), _map_comment)


def read_labels(uri: str) -> dict[str, LabelsRow]:
    """Read test_labels.csv into memory, by id.

    Rows of it that cannot be read leave their comment without labels, and are counted there.

    Raises:
        DatasetError: It is empty or lacks a column.
    """
    labels: dict[str, LabelsRow] = {}
    for file in list_files(uri):
        for record in read_records(file.uri, ("id", LABEL_COLUMN)):
            if isinstance(record, Rejection):
                continue
            values = dict(record.values)
            key = _spell_id(values.pop("id", None))
            known = labels.get(key)
            if known is None:
                labels[key] = LabelsRow(record.source_row, values)
            elif known.values != values:
                labels[key] = LabelsRow(known.source_row, known.values, record.source_row)
    if not labels:
        raise DatasetError(
            f"{uri}: expected labels, found no readable row. Check `labels_uri`, or fetch the file "
            "again."
        )
    return labels


def _spell_id(value: object) -> str:
    """An id as text: a Parquet file may hold it as a number."""
    return "" if value is None else str(value)


def _map_comment(record: Record) -> Sample:
    label = record.values.get(LABEL_COLUMN)
    is_toxic = parse_binary_label(label, LABEL_COLUMN)
    return _make_sample(record.source_row, record.values, is_toxic, None, label)


def _map_with_labels(record: Record, labels: Mapping[str, LabelsRow]) -> Sample:
    key = _spell_id(record.values.get("id"))
    row = labels.get(key)
    if row is None or not key:
        raise RejectedRecordError(
            Reason.no_labels_row, "expected a row with this id in the labels file, found none"
        )
    if row.conflict is not None:
        raise RejectedRecordError(
            Reason.duplicate_id,
            f"expected one row with this id in the labels file, found rows {row.source_row} and "
            f"{row.conflict} with different labels",
        )
    label = row.values.get(LABEL_COLUMN)
    is_toxic = parse_binary_label(label, LABEL_COLUMN)
    return _make_sample(record.source_row, {**record.values, **row.values}, is_toxic, None, label)


def _map_scored(record: Record, threshold: float) -> Sample:
    target = record.values.get("target")
    toxicity = parse_score(target, "target")
    return _make_sample(record.source_row, record.values, toxicity >= threshold, toxicity, target)


def _make_sample(
    source_row: int,
    values: Mapping[str, Any],
    is_toxic: bool,
    toxicity: float | None,
    label: object,
) -> Sample:
    language = values.get("lang")
    return Sample(
        source_row=source_row,
        text=require_text(values.get(TEXT_COLUMN), TEXT_COLUMN),
        is_toxic=is_toxic,
        toxicity=toxicity,
        language=language if isinstance(language, str) else None,
        attributes=parse_attributes(values, leave_out=(TEXT_COLUMN,)),
        label=describe_label(label),
    )
