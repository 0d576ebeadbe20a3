#!/usr/bin/env bash
# duckdb 2.0.0: in a Jupyter kernel where ipywidgets is not installed, `enable_progress_bar` is false, and setting it to
# false is refused for want of ipywidgets; so is every other setting of the progress bar. A query runs.
# Seen:
#   before: False
#   SET enable_progress_bar = false: InvalidInputException
#   SET progress_bar_time = 60000: InvalidInputException
#   SELECT 1: [(1,)]
# Our guard: it is switched off only where it is on (eigenshift/detection/labelled_layers.py; tests/test_notebook.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check duckdb==2.0.0 nbclient==0.11.0 ipykernel==7.4.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

CELL = """
import duckdb

connection = duckdb.connect()
((is_on,),) = connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()
print(f"before: {is_on}")
for statement in ("SET enable_progress_bar = false", "SET progress_bar_time = 60000"):
    try:
        connection.execute(statement)
        print(f"{statement}: taken")
    except duckdb.Error as error:
        print(f"{statement}: {type(error).__name__}")
print(f"SELECT 1: {connection.execute('SELECT 1').fetchall()}")
"""
notebook = new_notebook(cells=[new_code_cell(CELL)])
notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
NotebookClient(notebook, timeout=120).execute()
found = "".join(item["text"] for item in notebook.cells[0].outputs if item.get("name") == "stdout")
print(found, end="")
assert found.splitlines() == [
    "before: False",
    "SET enable_progress_bar = false: InvalidInputException",
    "SET progress_bar_time = 60000: InvalidInputException",
    "SELECT 1: [(1,)]",
]
PY
