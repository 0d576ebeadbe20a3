"""Any file of records -> records: what a file is decides, not what it is called.

Parquet, Arrow and JSON are told by how they begin, and so are the files that cannot be read, which
are named for what they are. Text that is none of these has no mark of its own: the format says how
to read it, or the ending of its name. What is compressed comes unpacked (`store/unpacking.py`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import IO, Any

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.delimited import (
    CSV,
    TSV,
    Dialect,
    choose_dialect,
    read_delimited_stream,
)
from eigenshift.datasets.json_lines import UTF8_BOM, is_json, read_json
from eigenshift.datasets.records import Record, Rejection
from eigenshift.datasets.tables import is_table, read_table
from eigenshift.store.source_files import open_named

HEAD_BYTES = 4_096
TAR_MARK = slice(257, 262)
PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file", "Run git lfs pull"),
    (b"\xd0\xcf\x11\xe0", "an old office document (a workbook of Excel, say)", "Save it as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it"),
    (b"Rar!", "a RAR archive", "Unpack it"),
    (b"%PDF-", "a PDF", "Name the data it was made from"),
    (b"SQLite format 3\0", "an SQLite database", "Write its table as CSV or Parquet"),
    (b"\x89HDF", "an HDF5 file", "Write its table as Parquet"),
    (b"\x93NUMPY", "an array of NumPy", "Write it as CSV or Parquet"),
    (b"ORC", "an ORC file", "Write it as Parquet"),
    (b"Obj\x01", "an Avro file", "Write it as Parquet"),
    (b"PARE", "an encrypted Parquet file", "Write it without encryption"),
    (b"\x80\x04\x95", "a Python pickle, which is not opened: it can run code", "Write it as CSV"),
    (b"\x80\x05\x95", "a Python pickle, which is not opened: it can run code", "Write it as CSV"),
    (b"\x04\x22\x4d\x18", "a file compressed by LZ4", "Unpack it, or compress it by gzip or zstd"),
)
"""First bytes, what they are of, and the way out."""


class Layout(str, Enum):
    """How text is read that is not marked as anything."""

    csv = "csv"
    tsv = "tsv"
    json_lines = "json_lines"


DIALECTS: dict[Layout, Dialect] = {Layout.csv: CSV, Layout.tsv: TSV}


class Container:
    """A file that is open, at its beginning.

    Attributes:
        uri: Where it is.
        name: Its own name, of a compressed file that of what is in it.
        class_names: Of numbered classes, by column; known once reading has begun.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        handle: Any,
        class_names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.uri = uri
        self.name = name
        self.class_names: dict[str, Sequence[str]] = dict(class_names or {})
        self._handle = handle
        self._head: bytes = handle.peek(HEAD_BYTES)[:HEAD_BYTES]
        _refuse_foreign(self._head, uri)

    @property
    def handle(self) -> IO[bytes]:
        """Its bytes, for text that is no records."""
        found: IO[bytes] = self._handle
        return found

    @property
    def is_marked(self) -> bool:
        """Whether it shows by itself how it is read: as Parquet, Arrow or JSON."""
        return is_table(self._head) or is_json(self._head)

    def read(self, required: Collection[str], otherwise: Layout) -> Iterator[Record | Rejection]:
        """Its records.

        Args:
            required: Columns it must have.
            otherwise: How it is read if it is text of no mark; if that is `json_lines` and its
                first line is a header with the columns required, it is read as CSV.

        Raises:
            DatasetError: It cannot be read, lacks a required column or has one twice.
        """
        if is_table(self._head):
            return read_table(self._handle, self.uri, required, self.class_names)
        if is_json(self._head):
            return read_json(self._handle, self.uri)
        if otherwise is Layout.json_lines and not self._has_header(required):
            return read_json(self._handle, self.uri)
        dialect = DIALECTS.get(otherwise, CSV)
        return read_delimited_stream(self._handle, self.uri, required, dialect)

    def _has_header(self, required: Collection[str]) -> bool:
        line = self._head.removeprefix(UTF8_BOM).partition(b"\n")[0].decode("latin-1")
        return line.startswith(("sep=", '"sep=')) or choose_dialect(line, required, CSV) is not None


def read_records(
    uri: str, required: Collection[str], otherwise: Layout = Layout.csv
) -> Iterator[Record | Rejection]:
    """Read a file record by record, whatever it is.

    Args:
        uri: Path or URL.
        required: Columns it must have; of JSON each object by itself.
        otherwise: As for `Container.read`.

    Raises:
        DatasetError: It cannot be read, lacks a required column or has one twice.
    """
    with open_named(uri) as (name, handle):
        yield from Container(uri, name, handle).read(required, otherwise)


def _refuse_foreign(head: bytes, uri: str) -> None:
    """Name a file for what it is, where that cannot be read.

    Raises:
        DatasetError: It is such a file.
    """
    found = next(((what, way) for magic, what, way in FOREIGN if head.startswith(magic)), None)
    if found is None and head[TAR_MARK] == b"ustar":
        found = ("a tar archive", "Unpack it, and name the file or the folder")
    if found is None and PAGE.match(head.removeprefix(UTF8_BOM)):
        found = (
            "a web page or other XML, perhaps in place of a download that asks for a login",
            "Fetch the file itself",
        )
    if found is None and _is_utf16(head):
        found = ("UTF-16", "Convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
    if found is not None:
        what, way = found
        raise DatasetError(
            f"{uri}: expected Parquet, JSON, CSV or plain text in UTF-8, found {what}. {way}, and "
            "name the result in `uri`."
        )


def _is_utf16(head: bytes) -> bool:
    """By its byte order mark, or by the zeros between the letters of a header."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    begin = head[:16]
    return len(begin) == 16 and (not any(begin[1::2]) or not any(begin[0::2]))
