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
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from eigenshift.base.errors import DatasetError
from eigenshift.base.schemas import REJECTED_ROWS, SOURCE_FILES
from eigenshift.datasets.containers import Container
from eigenshift.datasets.jigsaw import (
    make_jigsaw_reader,
    make_multilingual_reader,
    make_unintended_bias_reader,
)
from eigenshift.datasets.labels import LabelTally
from eigenshift.datasets.language import resolve_language
from eigenshift.datasets.paragraphs import make_paragraphs_reader
from eigenshift.datasets.real_toxicity_prompts import make_prompts_reader
from eigenshift.datasets.records import (
    SAVED_TO_DISK,
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
from eigenshift.datasets.stages import DEFAULTS, ReadingInputs, ReadingKey
from eigenshift.datasets.toxic_spans import make_toxic_spans_reader
from eigenshift.datasets.toxicn import make_toxicn_reader
from eigenshift.settings import SourceFormat, SourceSettings
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.source_files import SourceFile, digest_file, list_files, open_named
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)


PEEK_BYTES = 16 << 20
"""A larger file has some rows."""
MAX_PEEKS = 20
"""Files of a source that are opened before a run begins."""
EXPECTED_REASONS = frozenset({Reason.unscored, Reason.not_a_paragraph})
"""Why rows are rejected of a file that is the one meant."""
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
    return [source.model_copy(update={"uri": file.uri}) for file in _list_data_files(source.uri)]


def list_source_files(source: SourceSettings) -> list[SourceFile]:
    """All files of a source that is in files, then those of its labels.

    Raises:
        DatasetError: There are none, or they are in a way that only the hub's library reads.
    """
    if source.format is SourceFormat.huggingface:
        return list_files(source.uri)
    return [*_list_data_files(source.uri), *_list_labels_files(source)]


def require_first_rows(source: SourceSettings, files: Sequence[SourceFile]) -> None:
    """Refuse what cannot be read as a source, and small files without a row; the first few only.

    Args:
        source: Whose files they are.
        files: From `list_source_files`.

    Raises:
        DatasetError: A file is empty, damaged, without a column that is read, or of no kind that is
            read.
    """
    # With labels in a file of their own the reader would read all of that first.
    has_own_rows = source.format is not SourceFormat.huggingface and source.labels_uri is None
    for file in files[:MAX_PEEKS]:
        if has_own_rows and file.n_bytes <= PEEK_BYTES:
            with closing(_read_rows(source, file.uri)) as items:
                if next(items, None) is None:
                    raise describe_unusable(file.uri, 0, Counter())
        elif source.format is not SourceFormat.huggingface:
            with explain_damage(file.uri), open_named(file.uri) as (inner_name, handle):
                Container(file.uri, inner_name, handle)  # refuses what no format reads


def _read_rows(source: SourceSettings, uri: str) -> Generator[Item, None, None]:
    with explain_damage(uri):
        yield from MAKE_READER[source.format](source)(uri)


def _list_data_files(uri: str) -> list[SourceFile]:
    """The files of a source.

    Raises:
        DatasetError: There are none, or they are in a way that only the hub's library reads.
    """
    files = list_files(uri)
    saved = next((file for file in files if PurePosixPath(file.uri).name in SAVED_TO_DISK), None)
    if saved is not None:
        raise DatasetError(
            f"{saved.uri}: expected files of texts, found a folder that the datasets library wrote "
            "by save_to_disk. Set the source's `format` to 'huggingface', with its `columns`."
        )
    return files


def digest_source(source: SourceSettings) -> str:
    """Identity of what a source holds now: names and digests of its files, labels included.

    Raises:
        DatasetError: No file matches, or one cannot be read.
    """
    if source.format is SourceFormat.huggingface:
        from eigenshift.datasets.huggingface import digest_dataset  # imports the hub's client

        return digest_dataset(source)
    digests = []
    for file in [*_list_data_files(source.uri), *_list_labels_files(source)]:
        with explain_damage(file.uri):
            digests.append([file.uri, digest_file(file.uri)])
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def read_file(
    source: SourceSettings,
    max_characters: int,
    workspace: Workspace,
    *,
    max_rejected_share: float = DEFAULTS.max_rejected_share,
    max_unknown_labels: float = DEFAULTS.max_unknown_labels,
) -> None:
    """Read one file into a workspace; every record becomes a text or a rejected row.

    Args:
        source: The settings of the source, `uri` naming one file (`list_sources`).
        max_characters: Longer texts are rejected.
        workspace: Receives the tables, and the facts rows_read, records, rejected.
        max_rejected_share: More rejected rows stop the run; `EXPECTED_REASONS` do not count.
        max_unknown_labels: Share of the labels, 0 to 1; more that are none stop the run.

    Raises:
        DatasetError: The file cannot be read, has the wrong columns, no usable record, too few, or
            labels that are none.
    """
    file = _find_input(source)
    started = time.perf_counter()
    rejected: list[Rejection] = []
    labels = LabelTally()
    n_rows = n_blank_lines = 0
    with (
        RecordWriter(workspace.path(tables.RECORDS.file)) as writer,
        closing(_read_items(file)) as items,
    ):
        for item in islice(items, source.max_rows):
            n_rows += 1
            _check_row_number(file.uri, item, n_rows)
            labels.add(item)
            found = _screen(item, source, file.uri, max_characters)
            if isinstance(found, Rejection):
                rejected.append(found)
                is_line = isinstance(item, Sample) and item.is_line
                n_blank_lines += is_line and found.reason is Reason.empty_text
            else:
                writer.append(found)
    labels.check(file.uri, source, max_unknown_labels)
    reasons = Counter(rejection.reason for rejection in rejected)
    if n_rows == reasons.total():
        raise describe_unusable(file.uri, n_rows, reasons)
    n_expected = n_blank_lines + sum(reasons[reason] for reason in EXPECTED_REASONS)
    if reasons.total() - n_expected > max_rejected_share * n_rows:
        raise _describe_share(file.uri, n_rows, reasons, max_rejected_share, labels)
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
        from eigenshift.datasets.huggingface import find_dataset

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
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
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
        f"in another schema.{_advise_encoding(reasons)} Check the source's `format`, `columns` "
        "and `labels_uri`, or take the file out of the sources."
    )


def _advise_encoding(reasons: Counter[Reason]) -> str:
    if not reasons or reasons.most_common(1)[0][0] is not Reason.bad_encoding:
        return ""
    return (
        " It is probably in another encoding than UTF-8: convert it, e.g. iconv -f WINDOWS-1252 "
        "-t UTF-8."
    )


def _describe_share(
    uri: str, n_rows: int, reasons: Counter[Reason], bound: float, labels: LabelTally
) -> DatasetError:
    counts = ", ".join(f"{reason.value}: {n}" for reason, n in reasons.most_common())
    met = f" Labels met: {labels.describe()}." if labels.has_any else ""
    return DatasetError(
        f"{uri}: expected at most {bound:.0%} of the rows to be unusable, found {reasons.total()} "
        f"rejected among {n_rows} ({counts}).{met} This is probably not the file meant, or it is "
        f"in another schema.{_advise_encoding(reasons)} Check the source's `format` and "
        "`columns`, or set `ingestion.max_rejected_share` to what is right for this file."
    )


def carry_out(inputs: ReadingInputs, key: ReadingKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `read_file`."""
    read_file(
        key.source,
        key.max_characters,
        workspace,
        max_rejected_share=key.max_rejected_share,
        max_unknown_labels=key.max_unknown_labels,
    )
