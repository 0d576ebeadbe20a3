"""One file of a source -> its records: texts that are usable by themselves, and rejected rows.

Writes `records.parquet` (`schemas.RECORDS`), `rejected_rows.parquet` (`schemas.REJECTED_ROWS`) and
`source_files.parquet` (`schemas.SOURCE_FILES`) into a workspace. Depends on this file alone (and
the source's labels file), so a new file in a folder leaves the others' records as they are. Which
texts repeat across files is `ingestion.py`'s; formats, and what a bad record is, belong to the
other modules of this folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from eigenshift.base.errors import DatasetError
from eigenshift.base.schemas import REJECTED_ROWS, SOURCE_FILES
from eigenshift.datasets.huggingface import digest_dataset, find_dataset
from eigenshift.datasets.jigsaw import (
    make_jigsaw_reader,
    make_multilingual_reader,
    make_unintended_bias_reader,
)
from eigenshift.datasets.language import resolve_language
from eigenshift.datasets.paragraphs import make_paragraphs_reader
from eigenshift.datasets.real_toxicity_prompts import make_prompts_reader
from eigenshift.datasets.records import (
    Item,
    Reader,
    Reason,
    RejectedRecordError,
    Rejection,
    Sample,
    SourceInput,
    encode_attributes,
)
from eigenshift.datasets.screening import digest_text, screen_text
from eigenshift.datasets.sentences import make_sentences_reader
from eigenshift.datasets.spooling import RecordWriter
from eigenshift.datasets.stages import ReadingInputs, ReadingKey
from eigenshift.datasets.toxic_spans import make_toxic_spans_reader
from eigenshift.datasets.toxicn import make_toxicn_reader
from eigenshift.settings import SourceFormat, SourceSettings
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.source_files import SourceFile, digest_file, list_files
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


MAKE_READER: dict[SourceFormat, Callable[[SourceSettings], Reader]] = {
    SourceFormat.jigsaw: make_jigsaw_reader,
    SourceFormat.jigsaw_unintended_bias: make_unintended_bias_reader,
    SourceFormat.jigsaw_multilingual: make_multilingual_reader,
    SourceFormat.toxicn: make_toxicn_reader,
    SourceFormat.toxic_spans: make_toxic_spans_reader,
    SourceFormat.real_toxicity_prompts: make_prompts_reader,
    SourceFormat.sentences: make_sentences_reader,
    SourceFormat.paragraphs: make_paragraphs_reader,
}


def list_sources(source: SourceSettings) -> list[SourceSettings]:
    """Split a source into one per file, in reading order; a dataset of a hub stays whole.

    Raises:
        DatasetError: No file matches.
    """
    if source.format is SourceFormat.huggingface:
        return [source]
    return [source.model_copy(update={"uri": file.uri}) for file in list_files(source.uri)]


def digest_source(source: SourceSettings) -> str:
    """Identity of what a source holds now: names and digests of its files, labels included.

    Raises:
        DatasetError: No file matches, or one cannot be read.
    """
    if source.format is SourceFormat.huggingface:
        return digest_dataset(source)
    digests = []
    for file in [*list_files(source.uri), *_list_labels_files(source)]:
        with explain_damage(file.uri):
            digests.append([file.uri, digest_file(file.uri)])
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def read_file(source: SourceSettings, max_characters: int, workspace: Workspace) -> None:
    """Read one file into a workspace; every record becomes a text or a rejected row.

    Args:
        source: The settings of the source, `uri` naming one file (`list_sources`).
        max_characters: Longer texts are rejected.
        workspace: Receives the tables, and the facts rows_read, records, rejected.

    Raises:
        DatasetError: The file cannot be read, has the wrong columns, or no usable record.
    """
    file = _find_input(source)
    started = time.perf_counter()
    rejected: list[Rejection] = []
    n_rows = 0
    with (
        RecordWriter(workspace.path(tables.RECORDS.file)) as writer,
        closing(_read_items(file)) as items,
    ):
        for item in islice(items, source.max_rows):
            n_rows += 1
            _check_row_number(file.uri, item, n_rows)
            found = _screen(item, source, file.uri, max_characters)
            if isinstance(found, Rejection):
                rejected.append(found)
            else:
                writer.append(found)
    reasons = Counter(rejection.reason for rejection in rejected)
    if n_rows == reasons.total():
        raise describe_unusable(file.uri, n_rows, reasons)
    write_rejections(source.name, [(file.uri, item) for item in rejected], workspace)
    described = _describe_files(source, file, n_rows)
    workspace.write_rows(tables.SOURCE_FILES.file, described, SOURCE_FILES)
    workspace.facts = {
        "rows_read": n_rows,
        "records": n_rows - len(rejected),
        "rejected": dict(sorted((reason.value, n) for reason, n in reasons.items())),
    }
    logger.info(
        "file read: dataset=%s file=%s rows_read=%d rejected=%d seconds=%.2f",
        source.name,
        file.uri,
        n_rows,
        len(rejected),
        time.perf_counter() - started,
    )


def write_rejections(
    dataset: str, rejections: Sequence[tuple[str, Rejection]], workspace: Workspace
) -> None:
    """Write rejected rows (`schemas.REJECTED_ROWS`) in the order given, each with its file."""
    columns = [
        [dataset] * len(rejections),
        [uri for uri, _ in rejections],
        [item.source_row for _, item in rejections],
        [item.reason.value for _, item in rejections],
        [item.detail for _, item in rejections],
    ]
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, REJECTED_ROWS, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=REJECTED_ROWS)
    workspace.write_table(tables.REJECTED_ROWS.file, table, REJECTED_ROWS)


def _screen(
    item: Item, source: SourceSettings, uri: str, max_characters: int
) -> dict[str, Any] | Rejection:
    """A row of records, or why it is none."""
    if isinstance(item, Rejection):
        return item
    try:
        screen_text(item.text, max_characters)
        attributes = encode_attributes(item.attributes)
    except RejectedRecordError as error:
        return Rejection(item.source_row, error.reason, error.detail)
    return _make_row(item, source, uri, attributes)


def _make_row(sample: Sample, source: SourceSettings, uri: str, attributes: str) -> dict[str, Any]:
    digest = digest_text(sample.text)
    return {
        "sample_id": f"{source.name}-{digest:016x}",
        "dataset": source.name,
        "role": source.effective_role.value,
        "split": source.split,
        "language": resolve_language(sample.text, sample.language, source.language),
        "is_toxic": sample.is_toxic,
        "toxicity": sample.toxicity,
        "text": sample.text,
        "source_uri": uri,
        "source_row": sample.source_row,
        "attributes": attributes,
        "text_digest": digest,
    }


def _describe_files(source: SourceSettings, file: SourceInput, n_rows: int) -> list[dict[str, Any]]:
    """The file, then its labels files, which have no rows of their own."""
    described = [(file.uri, file.sha256, file.n_bytes, n_rows)]
    described += [
        (labels.uri, digest_file(labels.uri), labels.n_bytes, 0)
        for labels in _list_labels_files(source)
    ]
    return [
        {
            "dataset": source.name,
            "source_uri": uri,
            "sha256": sha256,
            "bytes": n_bytes,
            "rows_read": rows,
        }
        for uri, sha256, n_bytes, rows in described
    ]


def _find_input(source: SourceSettings) -> SourceInput:
    if source.format is SourceFormat.huggingface:
        return find_dataset(source)
    (file,) = list_files(source.uri)
    with explain_damage(source.labels_uri or source.uri):
        reader = MAKE_READER[source.format](source)
    with explain_damage(file.uri):
        digest = digest_file(file.uri)
    return SourceInput(file.uri, digest, file.n_bytes, partial(reader, file.uri))


def _list_labels_files(source: SourceSettings) -> list[SourceFile]:
    return [] if source.labels_uri is None else list_files(source.labels_uri)


def _read_items(file: SourceInput) -> Generator[Item, None, None]:
    with explain_damage(file.uri):
        yield from file.read()


@contextmanager
def explain_damage(uri: str) -> Iterator[None]:
    """Turn what a damaged or vanished file raises while it is read into one kind of error."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        found = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DatasetError(
            f"{uri}: expected a readable file, found: {type(error).__name__}: {found}. A "
            "compressed file that ends early was probably cut short in transfer. Fetch it again, "
            "or check its permissions."
        ) from error


def _check_row_number(uri: str, item: Item, expected: int) -> None:
    if item.source_row != expected:
        raise DatasetError(
            f"{uri}: expected record {expected}, found record {item.source_row}. This is an error "
            "in EigenShift's reader, not in the file. Please report it with the file's schema."
        )


def describe_unusable(uri: str, n_rows: int, reasons: Counter[Reason]) -> DatasetError:
    """The error for a file or source without a usable row, with the counts per reason."""
    counts = ", ".join(f"{reason.value}: {n}" for reason, n in reasons.most_common())
    found = f"none among {n_rows} rows ({counts})" if n_rows else "no rows at all"
    return DatasetError(
        f"{uri}: expected at least one usable row, found {found}. The file is empty, damaged, or "
        "in another schema. Check the source's `format`, `columns` and `labels_uri`, or take the "
        "file out of the sources."
    )


def carry_out(inputs: ReadingInputs, key: ReadingKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `read_file`."""
    read_file(key.source, key.max_characters, workspace)
