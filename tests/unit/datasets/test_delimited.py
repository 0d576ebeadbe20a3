"""Reading CSV and TSV: one record per row, whatever is wrong with it."""

from __future__ import annotations

import csv
import io
import logging
from itertools import count

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.delimited import read_delimited
from eigenshift.datasets.records import Record, Rejection

FILE_NUMBERS = count()


def read(content: bytes, **options) -> list[Record | Rejection]:
    """Read bytes as a file with the columns a and b."""
    uri = f"memory://delimited/{next(FILE_NUMBERS)}.csv"
    with fsspec.open(uri, "wb") as handle:
        handle.write(content)
    return list(read_delimited(uri, ("a", "b"), **options))


def list_cells(records: list[Record | Rejection]) -> list[tuple[str, ...]]:
    """Cells of the records that were accepted."""
    return [tuple(item.values.values()) for item in records if isinstance(item, Record)]


def list_reasons(records: list[Record | Rejection]) -> list[tuple[int, str]]:
    """Row and reason of the records that were not."""
    return [(i.source_row, i.reason.value) for i in records if isinstance(i, Rejection)]


@pytest.mark.parametrize(
    ("content", "cells"),
    [
        (b"a,b\n1,2\n", [("1", "2")]),
        (b"a,b\n1,2", [("1", "2")]),
        (b"\xef\xbb\xbfa,b\n1,2\n", [("1", "2")]),
        (b"a,b\r\n1,2\r\n3,4\r\n", [("1", "2"), ("3", "4")]),
        (b"a,b\r1,2\r3,4", [("1", "2"), ("3", "4")]),
        (b'a,b\n1,"two\nlines"\n', [("1", "two\nlines")]),
        (b'a,b\n1,"two\r\nlines"\n', [("1", "two\r\nlines")]),
        (b'a,b\n1,"say ""hello"", twice"\n', [("1", 'say "hello", twice')]),
        (b'a,b\n1,mid"dle\n', [("1", 'mid"dle')]),
        (b"a,b\n1,\n,2\n", [("1", ""), ("", "2")]),
        (b"a,b\n\n1,2\n\n\n", [("1", "2")]),
        (b"a,b\n1,x\0y\n", [("1", "x\0y")]),
        ("a,b\n1,茶和花\U0001f375\n".encode(), [("1", "茶和花\U0001f375")]),
        (b'"a","b"\n"1","2"\n', [("1", "2")]),
        (b" a , b \n1,2\n", [("1", "2")]),
    ],
    ids=lambda value: None,
)
def test_dialects_of_csv_are_read(content: bytes, cells: list[tuple[str, ...]]) -> None:
    """BOM, line ends, quoting, blank lines, NUL bytes and Unicode are read as written."""
    assert list_cells(read(content)) == cells


def test_rows_of_wrong_length_are_rejected_by_number() -> None:
    """Rows with too few or too many cells keep their number; their neighbours survive."""
    records = read(b"a,b\n1,2\n1\n1,2,3\n5,6\n")
    assert list_reasons(records) == [(2, "wrong_column_count"), (3, "wrong_column_count")]
    assert [item.source_row for item in records] == [1, 2, 3, 4]
    assert [item.detail for item in records if isinstance(item, Rejection)] == [
        "expected 2 cells, found 1",
        "expected 2 cells, found 3",
    ]


@pytest.mark.parametrize("damaged", [b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"ok\x80"])
def test_broken_utf8_rejects_one_row(damaged: bytes) -> None:
    """A cell that is not UTF-8 rejects its own row and no other."""
    records = read(b"a,b\n1,2\n3," + damaged + b"\n5,6\n")
    assert list_reasons(records) == [(2, "bad_encoding")]
    assert list_cells(records) == [("1", "2"), ("5", "6")]


def test_broken_utf8_in_a_row_of_wrong_length() -> None:
    """A row that is wrong in two ways is still one rejected row."""
    assert list_reasons(read(b"a,b\n\xff\n1,2\n")) == [(1, "wrong_column_count")]


@pytest.mark.parametrize("end", [b'"cut sho', b'"', b'"cut\n', b'"cut\nby, three\nlines'])
def test_quote_left_open_rejects_the_last_row(end: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A file cut short inside a quoted cell loses that row only, and says so in the log."""
    with caplog.at_level(logging.WARNING):
        records = read(b"a,b\n1,2\n3," + end)
    assert list_reasons(records) == [(2, "unclosed_quote")]
    assert list_cells(records) == [("1", "2")]
    assert "unclosed quote" in caplog.text
    assert "cut" not in caplog.text


def test_quote_left_open_in_the_first_cell() -> None:
    """An open quote is named as such even where the row also has too few cells."""
    assert list_reasons(read(b'a,b\n1,2\n"')) == [(2, "unclosed_quote")]


def test_cells_of_any_length_are_read() -> None:
    """Python's limit of 131,072 characters a cell does not apply."""
    text = "long " * 100_000
    assert list_cells(read(b"a,b\n1," + text.encode() + b"\n2,x\n")) == [("1", text), ("2", "x")]


def test_tsv_has_no_quoting() -> None:
    """In a TSV a quote is a character like any other."""
    records = read(b'a\tb\n"1\t2"\n', delimiter="\t", is_quoted=False)
    assert list_cells(records) == [('"1', '2"')]


def test_unnamed_and_repeated_columns_get_names_of_their_own() -> None:
    """An unnamed index column and repeated names do not hide each other."""
    (record,) = read(b",a,b,c,c,\n9,1,2,3,4,5\n")
    assert isinstance(record, Record)
    values = {"column_0": "9", "a": "1", "b": "2", "c": "3", "c_2": "4", "column_5": "5"}
    assert record.values == values


def test_a_column_that_is_read_may_not_be_there_twice() -> None:
    """Which of the two is meant is not guessed."""
    with pytest.raises(DatasetError, match="expected one column b, found 2 of that name"):
        read(b"a,b,b\n1,2,3\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "found an empty file"),
        (b"\n\n", "found an empty file"),
        (b"\xef\xbb\xbf", "found an empty file"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b'a,"b\n1,2\n', "unclosed_quote"),
        (b"a,\xff\n1,2\n", "bad_encoding"),
    ],
    ids=lambda value: None,
)
def test_unreadable_headers_stop_the_run(content: bytes, expected: str) -> None:
    """Without a header there is nothing to reject row by row."""
    with pytest.raises(DatasetError, match=expected):
        read(content)


def test_wrong_header_names_file_and_columns() -> None:
    """The error names the file, the columns expected and found, and the remedy."""
    with pytest.raises(DatasetError) as caught:
        read(b"id,comment_text,b\n1,2,3\n")
    message = str(caught.value)
    assert "memory://delimited/" in message
    assert "expected the columns a, b, found id, comment_text, b." in message
    assert "`format`" in message


def test_first_row_of_a_file_without_header_is_not_shown() -> None:
    """Where the header may be a text, the error gives the number of cells instead."""
    with pytest.raises(DatasetError, match="found 2 column") as caught:
        read(b"some sentence,0\nanother,1\n")
    assert "sentence" not in str(caught.value)


PIECES = st.sampled_from(
    [b"x", b" ", b",", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"\xff", b"\xc3\xa9", b'","']
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=40))
def test_every_row_of_any_content_is_accounted_for(pieces: list[bytes]) -> None:
    """Whatever the bytes, records are numbered 1, 2, 3, ... and Python's csv agrees on them."""
    content = b"".join(pieces)
    records = read(b"a,b\n" + content)
    rows = [
        cells for cells in csv.reader(io.StringIO(content.decode("latin-1"), newline="")) if cells
    ]
    assert [item.source_row for item in records] == list(range(1, len(rows) + 1))
    for item, cells in zip(records, rows, strict=True):
        if isinstance(item, Record):
            assert [cell.encode("latin-1").decode() for cell in cells] == list(item.values.values())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=8))
def test_what_a_csv_writer_wrote_is_read_back(rows: list[tuple[str, str]]) -> None:
    """Any text survives a round trip through a quoted CSV."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    assert list_cells(read(buffer.getvalue().encode())) == rows
