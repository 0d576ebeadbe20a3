"""Run the notebook of the documentation and keep what it prints.

`python docs/run_notebook.py` (`make notebook`) writes the outputs into `docs/quickstart.ipynb`;
`tests/test_notebook.py` runs it without keeping them. What depends on the machine is left out:
warnings, times, names of kernels.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
TIMEOUT = 600
"""Seconds of a cell."""


def run_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs it gives now, run in an empty folder.

    Args:
        path: The notebook; left as it is.

    Raises:
        CellExecutionError: A cell ends with an error.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}}, record_timing=False
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [item for item in cell.outputs if item.get("name") != "stderr"]
            cell.metadata.pop("execution", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


if __name__ == "__main__":
    nbformat.write(run_notebook(NOTEBOOK), NOTEBOOK)
    sys.stdout.write(f"{NOTEBOOK.name}: outputs are as of now. Look at them before you commit.\n")
