"""The process that reads joblib files imports no package and reaches out to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eigenshift.fetching import joblib_reader
from tests.support.packaged_scorers import build_scorer_package

PROGRAM = joblib_reader.__file__


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python as the product starts it."""
    command = (sys.executable, "-I", *arguments)
    return subprocess.run(command, capture_output=True, text=True, env={}, check=False)


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """Also without the folder of installed packages it reads a real dump."""
    build_scorer_package(tmp_path)
    (tmp_path / "out").mkdir()
    done = run("-S", PROGRAM, str(tmp_path / "model.joblib"), str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / joblib_reader.VALUES_NAME).is_file()


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess, sys; subprocess.run([sys.executable, '-V'])",
        "import os; os.system('true')",
        "import os; os.fork()",
    ],
)
def test_a_process_that_has_begun_reaches_out_to_nothing(attempt: str) -> None:
    """The interpreter itself refuses; told apart from an attempt that failed by its words."""
    load = f"import runpy; runpy.run_path({PROGRAM!r})['forbid_reaching_out']()"
    done = run("-c", f"{load}\n{attempt}")
    assert done.returncode != 0
    assert "found an attempt at" in done.stderr
