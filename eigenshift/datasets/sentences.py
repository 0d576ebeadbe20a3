"""Plain texts without a schema of their own -> samples, by the file's suffix.

.csv, .tsv, .jsonl (.ndjson, .json) and .parquet need a column of text, `columns.text`; in a .txt
(.text, .tokens) each line is one text and a blank line is a rejected record, so that the accounting
holds for files such as WikiText. A compression suffix (.gz, .bz2, .xz) may follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.column_mapping import list_required_columns, make_column_mapper
from eigenshift.datasets.delimited import read_delimited
from eigenshift.datasets.json_lines import UTF8_BOM, read_json_lines
from eigenshift.datasets.records import Item, Reader, Reason, Rejection, Sample, map_records
from eigenshift.datasets.tables import read_parquet
from eigenshift.settings import SourceSettings
from eigenshift.store.source_files import open_file

COMPRESSION_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip"})
TEXT_SUFFIXES = frozenset({".txt", ".text", ".tokens"})
JSON_LINES_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})


def make_sentences_reader(source: SourceSettings) -> Reader:
    """Reader of plain texts in any of the file types above."""
    return partial(_read_sentences, source=source)


def _read_sentences(uri: str, source: SourceSettings) -> Iterator[Item]:
    suffix = find_suffix(uri)
    required = list_required_columns(source)
    map_record = make_column_mapper(source)
    if suffix in TEXT_SUFFIXES:
        return read_text_lines(uri)
    if suffix == ".csv":
        return map_records(read_delimited(uri, required), map_record)
    if suffix == ".tsv":
        records = read_delimited(uri, required, delimiter="\t", is_quoted=False)
        return map_records(records, map_record)
    if suffix in JSON_LINES_SUFFIXES:
        return map_records(read_json_lines(uri), map_record)
    if suffix == ".parquet":
        return map_records(read_parquet(uri, required), map_record)
    raise DatasetError(
        f"{uri}: expected a file ending in .csv, .tsv, .txt, .jsonl or .parquet, found "
        f"{suffix or 'no suffix'}. Rename the file to what it holds, or narrow the glob in `uri`."
    )


def find_suffix(uri: str) -> str:
    """The suffix that names a file's type, in lower case, before any compression suffix."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(uri).suffixes]
    while suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_text_lines(uri: str) -> Iterator[Item]:
    """Read one text a line, without its line end."""
    with open_file(uri) as handle:
        for number, line in enumerate(handle, start=1):
            content = line.removeprefix(UTF8_BOM) if number == 1 else line
            try:
                yield Sample(number, content.rstrip(b"\r\n").decode("utf-8"))
            except UnicodeDecodeError as error:
                detail = f"expected UTF-8, found {error.reason} at byte {error.start}"
                yield Rejection(number, Reason.bad_encoding, detail)
