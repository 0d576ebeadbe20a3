"""The records of a source's files -> its samples: repeated texts out, the rest in shards.

Reads what `reading.py` made of each file; writes `samples-00000.parquet` and on
(`schemas.SAMPLES`), `rejected_rows.parquet` and `source_files.parquet` into a workspace. Two
passes: which of equal texts is kept takes having seen all of them. A shard never spans two files,
so a new file, or rows appended to one, leave the other shards byte for byte as they were
(docs/decisions/0009-incremental-ingestion.md).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.base.errors import DatasetError
from eigenshift.base.schemas import SAMPLES, SOURCE_FILES
from eigenshift.datasets.reading import describe_unusable, write_rejections
from eigenshift.datasets.records import Reason, Rejection
from eigenshift.datasets.screening import Place, RepetitionIndex
from eigenshift.datasets.spooling import ShardWriter, read_records
from eigenshift.datasets.stages import IngestionInputs, IngestionKey, RecordFiles
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


KEYS = ("text_digest", "is_toxic", "source_row")


@dataclass(frozen=True)
class FileRecords:
    """The tables of one file, as `reading.read_file` wrote them."""

    records: Path
    rejected_rows: Path
    source_files: Path


@dataclass
class _Books:
    """One file's way through the second pass."""

    uri: str
    rows_read: int
    rejected: list[Rejection]
    n_samples: int = 0
    described: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, files: FileRecords) -> _Books:
        """Begin with what reading the file found."""
        described = pq.read_table(files.source_files).to_pylist()
        rejected = [
            Rejection(row["source_row"], Reason(row["reason"]), row["detail"])
            for row in pq.read_table(files.rejected_rows).to_pylist()
        ]
        file = described[0]
        return cls(file["source_uri"], file["rows_read"], rejected, 0, described)


def combine_records(
    files: Sequence[FileRecords], rows_per_shard: int, workspace: Workspace
) -> None:
    """Drop repeated and contradictory texts and write what is left, file by file.

    Args:
        files: In reading order; of equal texts the first is kept.
        rows_per_shard: Each shard of a file is full but its last.
        workspace: Receives the tables, and the facts rows_read, samples, rejected, files.

    Raises:
        DatasetError: No sample is left.
    """
    books = [_Books.open(found) for found in files]
    texts = _index_texts(files)
    shards = ShardWriter(workspace, rows_per_shard)
    for file_index, found in enumerate(files):
        for batch in read_records(found.records):
            keep = [
                _judge(texts, books, (file_index, row), digest, is_toxic)
                for digest, is_toxic, row in zip(*_list_keys(batch), strict=True)
            ]
            shards.write(batch.filter(pa.array(keep, pa.bool_())).select(SAMPLES.names))
        shards.end_file()
    reasons = Counter(item.reason for book in books for item in book.rejected)
    if not any(book.n_samples for book in books):
        more = f" and {len(books) - 1} more files" if len(books) > 1 else ""
        n_rows = sum(book.rows_read for book in books)
        raise describe_unusable(f"{books[0].uri}{more}", n_rows, reasons)
    _close_books(books, reasons, workspace)


def _index_texts(files: Sequence[FileRecords]) -> RepetitionIndex:
    texts = RepetitionIndex()
    for file_index, found in enumerate(files):
        for batch in read_records(found.records, KEYS):
            for digest, is_toxic, row in zip(*_list_keys(batch), strict=True):
                texts.add(digest, is_toxic, (file_index, row))
    return texts


def _list_keys(batch: pa.RecordBatch) -> list[list[Any]]:
    return [batch.column(name).to_pylist() for name in KEYS]


def _judge(
    texts: RepetitionIndex,
    books: Sequence[_Books],
    place: Place,
    digest: int,
    is_toxic: bool | None,
) -> bool:
    """Whether a text is kept; books the verdict."""
    file_index, row = place
    problem = texts.judge(digest, is_toxic, place)
    if problem is None:
        books[file_index].n_samples += 1
        return True
    reason, (other_index, other_row) = problem
    where = f"row {other_row} of {PurePosixPath(books[other_index].uri).name}"
    detail = f"same text as {where}"
    if reason is Reason.contradictory_labels:
        detail = f"expected one label for a text, found the opposite one at {where}"
    books[file_index].rejected.append(Rejection(row, reason, detail))
    return False


def _close_books(books: Sequence[_Books], reasons: Counter[Reason], workspace: Workspace) -> None:
    """Check the books of every file, write them, and sum them up in the manifest's facts."""
    for book in books:
        _check_books(book)
        if not book.n_samples:
            logger.warning("file adds no sample: file=%s all rows are repeats", book.uri)
        book.rejected.sort(key=lambda item: item.source_row)
    rejections = [(book.uri, item) for book in books for item in book.rejected]
    write_rejections(books[0].described[0]["dataset"], rejections, workspace)
    # Files first, then the labels files, which every file of the source names.
    described = [book.described[0] for book in books]
    described += {row["source_uri"]: row for book in books for row in book.described[1:]}.values()
    workspace.write_rows(tables.SOURCE_FILES.file, described, SOURCE_FILES)
    workspace.facts = {
        "rows_read": sum(book.rows_read for book in books),
        "samples": sum(book.n_samples for book in books),
        "rejected": dict(sorted((reason.value, n) for reason, n in reasons.items())),
        "files": len(described),
    }


def _check_books(book: _Books) -> None:
    if book.rows_read != book.n_samples + len(book.rejected):
        raise DatasetError(
            f"{book.uri}: expected {book.rows_read} rows read = samples + rejected rows, found "
            f"{book.n_samples} + {len(book.rejected)}. This is an error in EigenShift's "
            "bookkeeping, not in the file. Please report it with the file's schema."
        )


def carry_out(
    inputs: IngestionInputs, key: IngestionKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `ingest_source`."""
    artifacts = bench.artifacts

    def fetch(files: RecordFiles) -> FileRecords:
        parts = (files.records, files.rejected_rows, files.source_files)
        return FileRecords(*(artifacts.locate(file).fetch() for file in parts))

    combine_records(artifacts.store.ask_all(fetch, inputs.records), key.rows_per_shard, workspace)
