"""CSV and TSV files -> records. Reads a stream of bytes; writes nothing.

One record for one row of the file, whatever is wrong with it: a row with broken UTF-8 or a wrong
number of cells is rejected by its number and its neighbours survive. Blank lines between rows are
no records. A TSV has no quoting (as paradetox and wiki-split ship it); in a CSV quotes may be
doubled and cells may hold line breaks. Cells are parted by what gives the columns that are asked
for: a comma, else a semicolon, a tab or a bar; or by what Excel's first line `sep=;` says. What the
cells mean belongs to the format modules.

Parsed with Python's `csv`, not `pyarrow.csv` (26.0): there, a row of the wrong length with broken
UTF-8 fails the whole file with the row's text in the error, and a CRLF inside a quoted cell
loses its LF where it meets the end of a block, so the text depended on the block size.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.records import (
    Reason,
    Record,
    RejectedRecordError,
    Rejection,
    check_columns,
    check_repeats,
    has_columns,
    name_columns,
)
from eigenshift.store.source_files import open_file

logger = logging.getLogger(__name__)

# Bytes are parsed as Latin-1, one character each, and cells decoded afterwards, so that broken
# UTF-8 stays inside its row. These two are outside Latin-1: no byte of a file can be one of them.
NUL = "\u0100"  # stands for a NUL byte, which Python 3.10's csv refuses
END = "\u0101"  # a line of our own after the last: swallowed only by a quote left open
UTF8_BOM = "\u00ef\u00bb\u00bf"
UTF16_BOMS = ("\u00ff\u00fe", "\u00fe\u00ff")
DELIMITERS = (",", ";", "\t", "|")
SEPARATOR_LINE = re.compile(r'"?sep=([^"])"?\s*')


@dataclass(frozen=True)
class Dialect:
    """How cells are parted.

    Attributes:
        delimiter: Between cells.
        is_quoted: Whether `"` quotes a cell; otherwise it is a character like any other.
    """

    delimiter: str = ","
    is_quoted: bool = True


CSV = Dialect()
TSV = Dialect("\t", is_quoted=False)


def read_delimited(
    uri: str, required: Collection[str], *, delimiter: str = ",", is_quoted: bool = True
) -> Iterator[Record | Rejection]:
    """Read a file with a header, record by record.

    Args:
        uri: Path or URL; what is compressed is unpacked.
        required: Columns that must be in the header.
        delimiter: Between cells, if it gives these columns; else another is tried.
        is_quoted: Whether `"` quotes a cell; otherwise it is a character like any other.

    Raises:
        DatasetError: The file is empty, is not UTF-8 text, or lacks a required column.
    """
    with open_file(uri) as handle:
        yield from read_delimited_stream(handle, uri, required, Dialect(delimiter, is_quoted))


def read_delimited_stream(
    handle: IO[bytes], uri: str, required: Collection[str], dialect: Dialect = CSV
) -> Iterator[Record | Rejection]:
    """As `read_delimited`, from a stream; `uri` is for errors."""
    lines = _read_lines(handle, uri)
    first = next(lines)
    if (line := SEPARATOR_LINE.fullmatch(first)) is not None:
        dialect = Dialect(line[1])
    else:
        dialect = choose_dialect(first, required, dialect) or dialect
        lines = chain([first], lines)
    rows = _split_rows(lines, dialect)
    names = _read_header(rows, uri, required)
    check_columns(uri, names, required)
    for number, (cells, n_lines) in enumerate(rows, start=1):
        try:
            record = Record(number, dict(zip(names, _decode_row(cells, names), strict=True)))
        except RejectedRecordError as error:
            if error.reason is Reason.unclosed_quote:
                logger.warning("unclosed quote: file=%s row=%d lines=%d", uri, number, n_lines - 1)
            yield Rejection(number, error.reason, error.detail)
        else:
            yield record


def choose_dialect(line: str, required: Collection[str], first: Dialect) -> Dialect | None:
    """The dialect in which a line is a header with the columns required; None if none is.

    Args:
        line: In Latin-1, as `_read_lines` gives them.
        required: Columns.
        first: The dialect that is tried before all others.
    """
    others = (Dialect(delimiter) for delimiter in DELIMITERS)
    for dialect in (first, *others):
        try:
            names = next(_split_rows(iter([line]), dialect), ([], 0))[0]
            if names and has_columns(name_columns(_decode_row(names, names)), required):
                return dialect
        except (RejectedRecordError, csv.Error):
            continue
    return None


def _split_rows(lines: Iterator[str], dialect: Dialect) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of each row, still in Latin-1, and the number of lines it takes.

    A quote left open swallows the end marker, which then ends the last cell of the last row.
    """
    csv.field_size_limit(sys.maxsize)  # process-wide: by default a long comment is an error
    reader = csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.is_quoted else csv.QUOTE_NONE,
    )
    last_line = 0
    for cells in reader:
        n_lines, last_line = reader.line_num - last_line, reader.line_num
        if cells == [END] and n_lines == 1:
            return
        if cells:
            yield cells, n_lines


def _read_lines(handle: IO[bytes], uri: str) -> Iterator[str]:
    with io.TextIOWrapper(handle, encoding="latin-1", newline="") as lines:
        first = next(lines, "").removeprefix(UTF8_BOM)
        if first.startswith(UTF16_BOMS):
            raise DatasetError(
                f"{uri}: expected UTF-8, found the byte order mark of UTF-16. Convert the file, "
                "e.g. iconv -f UTF-16 -t UTF-8."
            )
        yield first.replace("\0", NUL)
        for line in lines:
            yield line.replace("\0", NUL)
        yield END


def _read_header(
    rows: Iterator[tuple[list[str], int]], uri: str, required: Collection[str]
) -> list[str]:
    cells, _ = next(rows, ([], 0))
    if not cells:
        raise DatasetError(
            f"{uri}: expected a header and at least one row, found an empty file. The download or "
            "export probably failed. Fetch the file again, or take it out of the sources."
        )
    try:
        header = _decode_row(cells, cells)
    except RejectedRecordError as error:
        raise DatasetError(
            f"{uri}: expected a header in UTF-8, found {error.reason.value} in it "
            f"({error.detail}). This is not the file meant, or it is damaged. Check `uri`."
        ) from error
    check_repeats(uri, [cell.strip() for cell in header], required)
    return name_columns(header)


def _decode_row(cells: list[str], names: Sequence[str]) -> list[str]:
    if cells[-1].endswith(END):
        raise RejectedRecordError(
            Reason.unclosed_quote, "expected a closing quote, found the end of the file"
        )
    if len(cells) != len(names):
        raise RejectedRecordError(
            Reason.wrong_column_count, f"expected {len(names)} cells, found {len(cells)}"
        )
    return [
        cell if cell.isascii() else _decode_cell(cell, position)
        for position, cell in enumerate(cells, start=1)
    ]


def _decode_cell(cell: str, position: int) -> str:
    try:
        return cell.replace(NUL, "\0").encode("latin-1").decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedRecordError(
            Reason.bad_encoding,
            f"cell {position}: expected UTF-8, found {error.reason} at byte {error.start}",
        ) from None  # the decoder's error carries the cell
