#!/usr/bin/env bash
# pyarrow 26.0.1, pandas 3.1.1, duckdb 2.0.0, Python's csv and json: two columns of one name in one file are read without
# an error, and which of them is meant by the name differs from reader to reader.
# Seen (columns a, a with the values first, second):
#   csv.DictReader: second
#   pandas.read_csv: first (the other is a.1)
#   pyarrow, to_pylist: second
#   duckdb, read_parquet: first (the other is a_1)
#   json.loads of {"a": "first", "a": "second"}: second
# Our guard: a column that is read may not be there twice, and a JSON object that names a member twice is rejected
# (eigenshift/datasets/records.py, json_lines.py; tests/test_hostile_inputs.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    pyarrow==26.0.1 pandas==3.1.1 duckdb==2.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import csv
import io
import json

import duckdb
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

text = "a,a\nfirst,second\n"
pq.write_table(pa.Table.from_arrays([["first"], ["second"]], names=["a", "a"]), "t.parquet")
frame = pandas.read_csv(io.StringIO(text))
answer = duckdb.sql("SELECT * FROM read_parquet('t.parquet')")
seen = {
    "csv.DictReader": next(csv.DictReader(io.StringIO(text)))["a"],
    "pandas.read_csv": f"{frame['a'][0]} (the other is {frame.columns[1]})",
    "pyarrow, to_pylist": pq.ParquetFile("t.parquet").read().to_pylist()[0]["a"],
    "duckdb, read_parquet": f"{answer.fetchall()[0][0]} (the other is {answer.columns[1]})",
    'json.loads of {"a": "first", "a": "second"}': json.loads('{"a": "first", "a": "second"}')["a"],
}
for name, found in seen.items():
    print(f"{name}: {found}")
expected = ["second", "first (the other is a.1)", "second", "first (the other is a_1)", "second"]
assert list(seen.values()) == expected, seen
PY
