"""One source of the settings -> samples, rejected rows and the files they came from.

Writes `samples-00000.parquet` and on (`schemas.SAMPLES`), `rejected_rows.parquet`
(`schemas.REJECTED_ROWS`) and `source_files.parquet` (`schemas.SOURCE_FILES`) into a workspace.
Two passes: the first reads every file, checks each text by itself and spools it; the second drops
the repeated texts, which takes having seen all of them. Formats, and what a bad record is, belong
to the other modules of this folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from eigenshift.artifacts import Workspace
from eigenshift.datasets.huggingface import digest_dataset, find_dataset
from eigenshift.datasets.jigsaw import (
    make_jigsaw_reader,
    make_multilingual_reader,
    make_unintended_bias_reader,
)
from eigenshift.datasets.language import resolve_language
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
from eigenshift.datasets.screening import Place, RepetitionIndex, digest_text, screen_text
from eigenshift.datasets.sentences import make_sentences_reader
from eigenshift.datasets.spooling import SampleSpool, ShardWriter
from eigenshift.datasets.toxicn import make_toxicn_reader
from eigenshift.errors import DatasetError
from eigenshift.schemas import REJECTED_ROWS, SAMPLES, SOURCE_FILES
from eigenshift.settings import IngestionSettings, SourceFormat, SourceSettings
from eigenshift.storage import SourceFile, digest_file, list_files

logger = logging.getLogger(__name__)

STEP_VERSION = 1

MAKE_READER: dict[SourceFormat, Callable[[SourceSettings], Reader]] = {
    SourceFormat.jigsaw: make_jigsaw_reader,
    SourceFormat.jigsaw_unintended_bias: make_unintended_bias_reader,
    SourceFormat.jigsaw_multilingual: make_multilingual_reader,
    SourceFormat.toxicn: make_toxicn_reader,
    SourceFormat.real_toxicity_prompts: make_prompts_reader,
    SourceFormat.sentences: make_sentences_reader,
}


def digest_source(source: SourceSettings) -> str:
    """Identity of what a source holds now: names and digests of its files, labels included.

    Raises:
        DatasetError: No file matches, or one cannot be read.
    """
    if source.format is SourceFormat.huggingface:
        return digest_dataset(source)
    digests = []
    for file in [*list_files(source.uri), *_list_labels_files(source)]:
        with _explain_damage(file.uri):
            digests.append([file.uri, digest_file(file.uri)])
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def ingest_source(
    source: SourceSettings, ingestion: IngestionSettings, workspace: Workspace
) -> None:
    """Read a source into a workspace; every record becomes a sample or a rejected row.

    Raises:
        DatasetError: A file cannot be read, has the wrong columns, or has no usable record.
    """
    with tempfile.TemporaryDirectory(dir=workspace.folder, prefix="spool-") as folder:
        run = _Ingestion(source, ingestion, workspace, Path(folder) / "samples.arrow")
        run.read_files()
        run.write_samples()
    run.write_rejected_rows()
    run.write_source_files()


class _Ingestion:
    """One source on its way through the two passes, and its books."""

    def __init__(
        self,
        source: SourceSettings,
        ingestion: IngestionSettings,
        workspace: Workspace,
        spool_path: Path,
    ) -> None:
        self._source = source
        self._ingestion = ingestion
        self._workspace = workspace
        self._spool = SampleSpool(spool_path)
        self._texts = RepetitionIndex()
        self._inputs: list[SourceInput] = []
        self._rows_read: list[int] = []
        self._n_samples: Counter[int] = Counter()
        self._rejected: list[tuple[Place, Reason, str]] = []

    def read_files(self) -> None:
        """First pass: read all files, reject what is unusable by itself, spool the rest."""
        self._inputs = _list_inputs(self._source)
        for file_index, file in enumerate(self._inputs):
            started = time.perf_counter()
            n_rejected_before = len(self._rejected)
            n_rows = 0
            with closing(_read_items(file)) as items:
                for item in islice(items, self._source.max_rows):
                    n_rows += 1
                    _check_row_number(file.uri, item, n_rows)
                    self._take(item, file_index)
            self._rows_read.append(n_rows)
            rejected = Counter(reason for _, reason, _ in self._rejected[n_rejected_before:])
            if n_rows == rejected.total():
                raise _describe_unusable(file.uri, n_rows, rejected)
            logger.info(
                "file read: dataset=%s file=%s rows=%d rejected=%d seconds=%.2f",
                self._source.name,
                file.uri,
                n_rows,
                rejected.total(),
                time.perf_counter() - started,
            )

    def _take(self, item: Item, file_index: int) -> None:
        place = (file_index, item.source_row)
        if isinstance(item, Rejection):
            self._rejected.append((place, item.reason, item.detail))
            return
        try:
            screen_text(item.text, self._ingestion.max_characters)
            attributes = encode_attributes(item.attributes)
        except RejectedRecordError as error:
            self._rejected.append((place, error.reason, error.detail))
            return
        digest = digest_text(item.text)
        self._texts.add(digest, item.is_toxic, place)
        self._spool.append(self._make_row(item, file_index, digest, attributes))

    def _make_row(
        self, sample: Sample, file_index: int, digest: int, attributes: str
    ) -> dict[str, Any]:
        source = self._source
        return {
            "sample_id": f"{source.name}-{digest:016x}",
            "dataset": source.name,
            "role": source.effective_role.value,
            "split": source.split,
            "language": resolve_language(sample.text, sample.language, source.language),
            "is_toxic": sample.is_toxic,
            "toxicity": sample.toxicity,
            "text": sample.text,
            "source_uri": self._inputs[file_index].uri,
            "source_row": sample.source_row,
            "attributes": attributes,
            "file_index": file_index,
            "text_digest": digest,
        }

    def write_samples(self) -> None:
        """Second pass: copy the spool into shards without repeated and contradictory texts."""
        shards = ShardWriter(self._workspace, self._ingestion.rows_per_shard)
        for batch in self._spool.read_batches():
            kept = batch.filter(pa.array(self._judge(batch), pa.bool_()))
            shards.write(kept.select(SAMPLES.names))
        shards.close()
        if not self._n_samples:
            reasons = Counter(reason for _, reason, _ in self._rejected)
            raise _describe_unusable(self._source.uri, sum(self._rows_read), reasons)

    def _judge(self, batch: pa.RecordBatch) -> list[bool]:
        """Whether each text is kept; books the verdicts."""
        columns = ("file_index", "source_row", "text_digest", "is_toxic")
        verdicts = []
        for file_index, row, digest, is_toxic in zip(
            *(batch.column(name).to_pylist() for name in columns), strict=True
        ):
            place = (file_index, row)
            problem = self._texts.judge(digest, is_toxic, place)
            if problem is None:
                self._n_samples[file_index] += 1
            else:
                reason, other = problem
                self._rejected.append((place, reason, self._describe_repeat(reason, other)))
            verdicts.append(problem is None)
        return verdicts

    def _describe_repeat(self, reason: Reason, other: Place) -> str:
        file_index, row = other
        where = f"row {row} of {PurePosixPath(self._inputs[file_index].uri).name}"
        if reason is Reason.contradictory_labels:
            return f"expected one label for a text, found the opposite one at {where}"
        return f"same text as {where}"

    def write_rejected_rows(self) -> None:
        """Write what was rejected, in file order."""
        self._rejected.sort(key=lambda entry: entry[0])
        columns = [
            [self._source.name] * len(self._rejected),
            [self._inputs[file_index].uri for (file_index, _), _, _ in self._rejected],
            [row for (_, row), _, _ in self._rejected],
            [reason.value for _, reason, _ in self._rejected],
            [detail for _, _, detail in self._rejected],
        ]
        arrays = [
            pa.array(column, field.type)
            for column, field in zip(columns, REJECTED_ROWS, strict=True)
        ]
        table = pa.Table.from_arrays(arrays, schema=REJECTED_ROWS)
        self._workspace.write_table("rejected_rows.parquet", table, REJECTED_ROWS)

    def write_source_files(self) -> None:
        """Check the books of every file, write them, and sum them up in the manifest's facts.

        A labels file is listed with no rows of its own: its rows complete those of the data.
        """
        n_rejected = Counter(file_index for (file_index, _), _, _ in self._rejected)
        rows: list[dict[str, Any]] = []
        for file_index, file in enumerate(self._inputs):
            n_samples = self._n_samples[file_index]
            _check_books(file.uri, self._rows_read[file_index], n_samples, n_rejected[file_index])
            if not n_samples:
                logger.warning("file adds no sample: file=%s all rows are repeats", file.uri)
            rows.append(self._describe_file(file.uri, file.sha256, file.n_bytes, file_index))
        rows.extend(
            self._describe_file(file.uri, digest_file(file.uri), file.n_bytes, None)
            for file in _list_labels_files(self._source)
        )
        self._workspace.write_rows("source_files.parquet", rows, SOURCE_FILES)
        reasons = Counter(reason.value for _, reason, _ in self._rejected)
        self._workspace.facts = {
            "rows_read": sum(self._rows_read),
            "samples": self._n_samples.total(),
            "rejected": dict(sorted(reasons.items())),
            "files": len(rows),
        }

    def _describe_file(
        self, uri: str, sha256: str, n_bytes: int, file_index: int | None
    ) -> dict[str, Any]:
        return {
            "dataset": self._source.name,
            "source_uri": uri,
            "sha256": sha256,
            "bytes": n_bytes,
            "rows_read": 0 if file_index is None else self._rows_read[file_index],
        }


def _list_inputs(source: SourceSettings) -> list[SourceInput]:
    if source.format is SourceFormat.huggingface:
        return [find_dataset(source)]
    files = list_files(source.uri)
    labels_uri = source.labels_uri or source.uri
    with _explain_damage(labels_uri):
        reader = MAKE_READER[source.format](source)
    inputs = []
    for file in files:
        with _explain_damage(file.uri):
            digest = digest_file(file.uri)
        inputs.append(SourceInput(file.uri, digest, file.n_bytes, partial(reader, file.uri)))
    return inputs


def _list_labels_files(source: SourceSettings) -> list[SourceFile]:
    return [] if source.labels_uri is None else list_files(source.labels_uri)


def _read_items(file: SourceInput) -> Generator[Item, None, None]:
    with _explain_damage(file.uri):
        yield from file.read()


@contextmanager
def _explain_damage(uri: str) -> Iterator[None]:
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


def _check_books(uri: str, n_rows: int, n_samples: int, n_rejected: int) -> None:
    if n_rows != n_samples + n_rejected:
        raise DatasetError(
            f"{uri}: expected {n_rows} rows read = samples + rejected rows, found {n_samples} + "
            f"{n_rejected}. This is an error in EigenShift's bookkeeping, not in the file. Please "
            "report it with the file's schema."
        )


def _describe_unusable(uri: str, n_rows: int, reasons: Counter[Reason]) -> DatasetError:
    counts = ", ".join(f"{reason.value}: {n}" for reason, n in reasons.most_common())
    found = f"none among {n_rows} rows ({counts})" if n_rows else "no rows at all"
    return DatasetError(
        f"{uri}: expected at least one usable row, found {found}. The file is empty, damaged, or "
        "in another schema. Check the source's `format`, `columns` and `labels_uri`, or take the "
        "file out of the sources."
    )
