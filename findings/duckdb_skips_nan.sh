#!/usr/bin/env bash
# duckdb 2.0.0 with pyarrow 26.0.1: a Parquet file states the least and greatest value of each column of a row
# group. pyarrow leaves NaN out of them, as the format asks for; DuckDB takes them for all values of the group
# and skips it, so rows with NaN are not found, and `max(x)` depends on what else is asked for. The format tells
# readers not to rely on them when they look for NaN. No error, no warning.
# Seen (three rows: NaN, 0.1, 0.4; DuckDB holds NaN for greater than any number):
#   with statistics: isnan(x) finds 0, x > 0.5 finds 0, max(x) is 0.4
#   without: isnan(x) finds 1, x > 0.5 finds 1, max(x) is nan
#   written by DuckDB: isnan(x) finds 1, x > 0.5 finds 1, max(x) is nan
# Our guard: columns of floats are written without statistics (eigenshift/store/parquet_files.py; its tests read
# back with DuckDB, pyarrow and pandas).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check duckdb==2.0.0 pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

table = pa.table({"x": [float("nan"), 0.1, 0.4]})
pq.write_table(table, "with statistics.parquet")
pq.write_table(table, "without.parquet", write_statistics=False)
duckdb.sql("COPY (SELECT unnest(['nan'::DOUBLE, 0.1, 0.4]) AS x) TO 'written by DuckDB.parquet'")
seen = {}
for name in ("with statistics", "without", "written by DuckDB"):
    file = f"read_parquet('{name}.parquet')"
    asked = [
        f"SELECT count(*) FROM {file} WHERE isnan(x)",
        f"SELECT count(*) FROM {file} WHERE x > 0.5",
        f"SELECT max(x) FROM {file}",
    ]
    found = [duckdb.sql(sql).fetchall()[0][0] for sql in asked]
    seen[name] = tuple(map(str, found))
    print(f"{name}: isnan(x) finds {found[0]}, x > 0.5 finds {found[1]}, max(x) is {found[2]}")
assert seen["with statistics"] == ("0", "0", "0.4"), seen
assert seen["without"] == seen["written by DuckDB"] == ("1", "1", "nan"), seen
PY
