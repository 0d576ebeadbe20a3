"""CSV and TSV files -> records. Reads bytes through `source_files.open_file`; writes nothing.

One record for one row of the file, whatever is wrong with it: a row with broken UTF-8 or a wrong
number of cells is rejected by its number and its neighbours survive. Blank lines between rows are
no records. A TSV has no quoting (as paradetox and wiki-split ship it); in a CSV quotes may be
doubled and cells may hold line breaks. What the cells mean belongs to the format modules.

Parsed with Python's `csv`, not `pyarrow.csv` (26.0): there, a row of the wrong length with broken
UTF-8 fails the whole file with the row's text in the error, and a CRLF inside a quoted cell
loses its LF where it meets the end of a block, so the text depended on the block size.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import IO

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.records import (
    Reason,
    Record,
    RejectedRecordError,
    Rejection,
    check_columns,
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


def read_delimited(
    uri: str, required: Collection[str], *, delimiter: str = ",", is_quoted: bool = True
) -> Iterator[Record | Rejection]:
    """Read a file with a header, record by record.

    Args:
        uri: Path or URL; gzip and friends are decompressed by suffix.
        required: Columns that must be in the header.
        delimiter: Between cells.
        is_quoted: Whether `"` quotes a cell; otherwise it is a character like any other.

    Raises:
        DatasetError: The file is empty, is not UTF-8 text, or lacks a required column.
    """
    with open_file(uri) as handle:
        rows = _split_rows(handle, uri, delimiter, is_quoted)
        names = _read_header(rows, uri)
        check_columns(uri, names, required)
        for number, (cells, n_lines) in enumerate(rows, start=1):
            try:
                record = Record(number, dict(zip(names, _decode_row(cells, names), strict=True)))
            except RejectedRecordError as error:
                if error.reason is Reason.unclosed_quote:
                    logger.warning(
                        "unclosed quote: file=%s row=%d lines=%d", uri, number, n_lines - 1
                    )
                yield Rejection(number, error.reason, error.detail)
            else:
                yield record


def _split_rows(
    handle: IO[bytes], uri: str, delimiter: str, is_quoted: bool
) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of each row, still in Latin-1, and the number of lines it takes.

    A quote left open swallows the end marker, which then ends the last cell of the last row.
    """
    csv.field_size_limit(sys.maxsize)  # process-wide: by default a long comment is an error
    reader = csv.reader(
        _read_lines(handle, uri),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE,
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


def _read_header(rows: Iterator[tuple[list[str], int]], uri: str) -> list[str]:
    cells, _ = next(rows, ([], 0))
    if not cells:
        raise DatasetError(
            f"{uri}: expected a header and at least one row, found an empty file. The download or "
            "export probably failed. Fetch the file again, or take it out of the sources."
        )
    try:
        return name_columns(_decode_row(cells, cells))
    except RejectedRecordError as error:
        raise DatasetError(
            f"{uri}: expected a header in UTF-8, found {error.reason.value} in it "
            f"({error.detail}). This is not the file meant, or it is damaged. Check `uri`."
        ) from error


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
