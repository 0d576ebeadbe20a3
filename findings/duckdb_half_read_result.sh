#!/usr/bin/env bash
# duckdb 2.0.0: a relation (`connection.sql(...)`) has no `fetchone()` or `fetchmany()`, as in 1.x it had; and
# after `connection.execute(...)` that was read only in part (`fetchone()`), other work on the connection by `sql()` is
# refused until the rest is read or given up, or goes by `cursor()`. Another `execute()` is taken.
# Seen:
#   relation has: fetchall; not: fetchone, fetchmany
#   after one row: sql() is refused with ResourceInUseException
#   execute() gives [(1,)], cursor() gives [(1,)]; after abort() sql() gives [(1,)]
# Our guard: docs/audit.md says so for notebooks (tests/unit/audit/test_sessions.py); the product reads every result whole, or
# closes its connection.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check duckdb==2.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import duckdb

connection = duckdb.connect()
names = ("fetchall", "fetchone", "fetchmany")
has = [name for name in names if hasattr(connection.sql("SELECT 1"), name)]
lacks = [name for name in names if name not in has]
print(f"relation has: {', '.join(has)}; not: {', '.join(lacks)}")
assert (has, lacks) == (["fetchall"], ["fetchone", "fetchmany"])
connection.execute("SELECT range FROM range(10000000)")
assert connection.fetchone() == (0,)
try:
    connection.sql("SELECT 1").fetchall()
    raise SystemExit("sql() is taken now")
except duckdb.Error as error:
    print(f"after one row: sql() is refused with {type(error).__name__}")
    assert type(error).__name__ == "ResourceInUseException"
aside = connection.cursor().sql("SELECT 1").fetchall()
again = connection.execute("SELECT 1").fetchall()
connection.execute("SELECT range FROM range(10000000)")
connection.fetchone()
connection.abort()
after = connection.sql("SELECT 1").fetchall()
print(f"execute() gives {again}, cursor() gives {aside}; after abort() sql() gives {after}")
assert again == aside == after == [(1,)]
PY
