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

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.delimited import read_delimited
from eigenshift.datasets.records import (
    Reader,
    Reason,
    Record,
    RejectedRecordError,
    Rejection,
    Sample,
    map_records,
    parse_attributes,
    parse_binary_label,
    parse_score,
)
from eigenshift.settings import SourceSettings
from eigenshift.store.source_files import list_files

TEXT_COLUMN = "comment_text"
LABEL_COLUMN = "toxic"


@dataclass(frozen=True, slots=True)
class LabelsRow:
    """One row of a labels file; `conflict` names a second row with the same id, other labels."""

    source_row: int
    values: Mapping[str, str]
    conflict: int | None = None


def make_jigsaw_reader(source: SourceSettings) -> Reader:
    """Reader of toxic comment files; reads the labels file, if there is one, once."""
    if source.labels_uri is None:
        required = (TEXT_COLUMN, LABEL_COLUMN)
        return lambda uri: map_records(read_delimited(uri, required), _map_comment)
    map_record = partial(_map_with_labels, labels=read_labels(source.labels_uri))
    return lambda uri: map_records(read_delimited(uri, ("id", TEXT_COLUMN)), map_record)


def make_unintended_bias_reader(source: SourceSettings) -> Reader:
    """Reader of unintended bias files."""
    map_record = partial(_map_scored, threshold=source.toxic_threshold)
    return lambda uri: map_records(read_delimited(uri, (TEXT_COLUMN, "target")), map_record)


def make_multilingual_reader(source: SourceSettings) -> Reader:
    """Reader of multilingual files."""
    required = (TEXT_COLUMN, LABEL_COLUMN, "lang")
    return lambda uri: map_records(read_delimited(uri, required), _map_comment)


def read_labels(uri: str) -> dict[str, LabelsRow]:
    """Read test_labels.csv into memory, by id.

    Rows of it that cannot be read leave their comment without labels, and are counted there.

    Raises:
        DatasetError: It is empty or lacks a column.
    """
    labels: dict[str, LabelsRow] = {}
    for file in list_files(uri):
        for record in read_delimited(file.uri, ("id", LABEL_COLUMN)):
            if isinstance(record, Rejection):
                continue
            values = dict(record.values)
            key = values.pop("id")
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


def _map_comment(record: Record) -> Sample:
    is_toxic = parse_binary_label(record.values[LABEL_COLUMN], LABEL_COLUMN)
    return _make_sample(record.source_row, record.values, is_toxic, None)


def _map_with_labels(record: Record, labels: Mapping[str, LabelsRow]) -> Sample:
    row = labels.get(record.values["id"])
    if row is None or not record.values["id"]:
        raise RejectedRecordError(
            Reason.no_labels_row, "expected a row with this id in the labels file, found none"
        )
    if row.conflict is not None:
        raise RejectedRecordError(
            Reason.duplicate_id,
            f"expected one row with this id in the labels file, found rows {row.source_row} and "
            f"{row.conflict} with different labels",
        )
    is_toxic = parse_binary_label(row.values[LABEL_COLUMN], LABEL_COLUMN)
    return _make_sample(record.source_row, {**record.values, **row.values}, is_toxic, None)


def _map_scored(record: Record, threshold: float) -> Sample:
    toxicity = parse_score(record.values["target"], "target")
    return _make_sample(record.source_row, record.values, toxicity >= threshold, toxicity)


def _make_sample(
    source_row: int, values: Mapping[str, str], is_toxic: bool, toxicity: float | None
) -> Sample:
    return Sample(
        source_row=source_row,
        text=values[TEXT_COLUMN],
        is_toxic=is_toxic,
        toxicity=toxicity,
        language=values.get("lang"),
        attributes=parse_attributes(values, leave_out=(TEXT_COLUMN,)),
    )
