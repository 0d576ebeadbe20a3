"""Plain texts without a schema of their own -> samples.

Parquet, Arrow and JSON are read whatever they are called; .csv and .tsv need their ending, and all
of these a column of text, `columns.text`. In a .txt (.text, .tokens) each line is one text and a
blank line is a rejected record, so that the accounting holds for files such as WikiText.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import IO

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.column_mapping import list_required_columns, make_column_mapper
from eigenshift.datasets.containers import Container, Layout
from eigenshift.datasets.json_lines import UTF8_BOM
from eigenshift.datasets.records import Item, Reader, Reason, Rejection, Sample, map_records
from eigenshift.settings import SourceSettings
from eigenshift.store.source_files import open_named

TEXT_SUFFIXES = frozenset({".txt", ".text", ".tokens"})
LAYOUTS = {
    ".csv": Layout.csv,
    ".tsv": Layout.tsv,
    ".jsonl": Layout.json_lines,
    ".ndjson": Layout.json_lines,
    ".json": Layout.json_lines,
}
"""How text is read, by the ending of its name."""


def make_sentences_reader(source: SourceSettings) -> Reader:
    """Reader of plain texts in any of the file types above."""
    return partial(_read_sentences, source=source)


def _read_sentences(uri: str, source: SourceSettings) -> Iterator[Item]:
    with open_named(uri) as (name, handle):
        container = Container(uri, name, handle)
        if is_plain_text(container):
            yield from read_text_lines(container.handle)
        else:
            yield from read_mapped(container, source)


def read_mapped(container: Container, source: SourceSettings) -> Iterator[Item]:
    """Read a file whose columns the settings name.

    Raises:
        DatasetError: What it holds cannot be told, or it lacks a column.
    """
    suffix = find_suffix(container.name)
    layout = Layout.csv if container.is_marked else LAYOUTS.get(suffix)
    if layout is None:
        raise DatasetError(
            f"{container.uri}: expected a file ending in .csv, .tsv, .txt, .jsonl or .parquet, "
            f"found {suffix or 'no suffix'} and text of another kind. Rename the file to what it "
            "holds, or narrow the glob in `uri`."
        )
    records = container.read(list_required_columns(source), layout)
    yield from map_records(records, make_column_mapper(source, container.class_names))


def is_plain_text(container: Container) -> bool:
    """Whether each line of a file is a text."""
    return not container.is_marked and find_suffix(container.name) in TEXT_SUFFIXES


def find_suffix(name: str) -> str:
    """The ending of a name, in lower case."""
    return PurePosixPath(name).suffix.lower()


def read_text_lines(handle: IO[bytes]) -> Iterator[Item]:
    """Read one text a line, without its line end."""
    for number, line in enumerate(handle, start=1):
        content = line.removeprefix(UTF8_BOM) if number == 1 else line
        try:
            yield Sample(number, content.rstrip(b"\r\n").decode("utf-8"), is_line=True)
        except UnicodeDecodeError as error:
            detail = f"expected UTF-8, found {error.reason} at byte {error.start}"
            yield Rejection(number, Reason.bad_encoding, detail)
