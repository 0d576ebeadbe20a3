"""What a file is decides how it is read; hostile ones are in tests/test_hostile_inputs.py."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from eigenshift.datasets.containers import Layout, read_records
from eigenshift.datasets.records import Record, Rejection, find_value, leave_out_value
from tests.support import hostile_files as files

ROWS = [{"text": "tea", "y": 0}, {"text": "jam", "y": 1}]
TABLE = pa.Table.from_pylist(ROWS)
JSON = [json.dumps(row) for row in ROWS]


def list_texts(uri: str, otherwise: Layout = Layout.csv) -> list[str]:
    """Texts of the records; the reason of what was rejected."""
    found = []
    for item in read_records(uri, ("text",), otherwise):
        found.append(item.reason.value if isinstance(item, Rejection) else item.values["text"])
    return found


@pytest.mark.parametrize(
    "content",
    [
        "text,y\ntea,0\njam,1\n",
        "text;y\ntea;0\njam;1\n",
        "y|text\n0|tea\n1|jam\n",
        "text\ty\ntea\t0\njam\t1\n",
        "sep=|\ntext|y\ntea|0\njam|1\n",
        "\n".join(JSON),
        "\n\n" + "\r\n\r\n".join(JSON),
        json.dumps(ROWS),
        "\ufeff" + json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(JSON) + "\n]\n",
        json.dumps(ROWS[0], indent=2) + "\n" + json.dumps(ROWS[1], indent=2),
        files.make_parquet(TABLE),
        files.make_arrow_stream(TABLE),
    ],
    ids=lambda value: None,
)
@pytest.mark.parametrize("otherwise", list(Layout))
def test_every_container_gives_the_same_records(write, content, otherwise) -> None:
    """Under a name that says nothing, whatever the format takes text for."""
    assert list_texts(write("t.data", content), otherwise) == ["tea", "jam"]


def test_a_bad_first_line_is_one_row(write) -> None:
    """An object that begins in the first line of JSON Lines, and does not end, is no document."""
    uri = write("t.jsonl", '{"text": "te\n' + JSON[1] + "\n")
    assert list_texts(uri, Layout.json_lines) == ["bad_json", "jam"]


def test_members_that_are_no_objects_are_rejected(write) -> None:
    """Of an array one by one."""
    assert list_texts(write("t.json", f"[{JSON[0]}, 7, {JSON[1]}]")) == ["tea", "bad_json", "jam"]


def test_tsv_keeps_its_quotes_and_other_tables_do_not(write) -> None:
    """As the public files have them."""
    content = 'text\ty\n"tea"\t0\n'
    assert list_texts(write("t.tsv", content), Layout.tsv) == ['"tea"']
    assert list_texts(write("t.csv", content), Layout.csv) == ["tea"]


def test_fields_of_nested_columns() -> None:
    """By a dot; a column of that very name goes first; a cell may hold the object."""
    nested = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert find_value(nested, "a.b.c") == 1
    assert find_value({"a.b": 1, **nested}, "a.b") == 1
    assert find_value({"a": '{"b": 4}'}, "a.b") == 4
    assert find_value({"a": "{'b': None, 'c': 5}"}, "a.c") == 5
    assert find_value(nested, "a.x") is None
    assert find_value(nested, "x.a") is None
    assert leave_out_value(nested, "a.b.c") == {"a": {"b": {}, "d": 2}, "e": 3}
    assert leave_out_value(nested, "e") == {"a": nested["a"]}


def test_columns_of_one_name_get_names_of_their_own(write) -> None:
    """In Parquet as in CSV."""
    names = ["text", "x", "x"]
    values = {"text": "0 of text", "x": "1 of x", "x_2": "2 of x"}
    table = files.make_twins(names)
    text = "text,x,x\n0 of text,1 of x,2 of x\n"
    for content in (files.make_parquet(table), text):
        (record,) = read_records(write("t.data", content), ("text",))
        assert isinstance(record, Record)
        assert record.values == values
