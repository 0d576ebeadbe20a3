"""How commands end where they cannot go on: one message, before anything is started, and a code.

Tried by the command line, as a person does. What storage does under faults is
`tests/unit/store/test_storage_faults.py`'s; two refreshes at once are `test_concurrency.py`'s.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.store import storage
from eigenshift.store.storage import Store
from eigenshift.upkeep.verification import verify_store
from flows.command_line import main
from tests.support.killed_work import start
from tests.support.refresh_process import find_api_url, prepare_refreshes
from tests.support.small_store import build_small_store

Run = Callable[..., tuple[int, str]]
ROOT = Path(__file__).parents[2]
STARTING = "starting Prefect"
NOT_THERE: dict[str, tuple[str, ...]] = {
    "refresh": ("--preset", "demo"),
    "demo": (),
    "compare": ("--preset", "demo"),
    "tune": ("--preset", "demo"),
    "detect": ("--preset", "demo"),
}
"""Commands that make a store: what is typed after their name."""
BAD_STORES = {
    "nosuch://bucket/store": "found nosuch://",
    "s3://": "expected the name of a bucket",
    "gs:///folder": "expected the name of a bucket",
    "az://": "expected the name of a container",
    "/proc/eigenshift/store": "expected a folder that can be made",
    "/sys/eigenshift": "expected a folder that can be made",
}
"""Stores nobody can write, and words of the message."""
ABOUT_A_STORE = {
    "runs": (),
    "releases": (),
    "audit": ("SELECT 1",),
    "report": ("--out", "OUT"),
    "export": ("--out", "OUT"),
    "rollback": ("--model", "demo"),
    "verify": (),
    "gc": ("--keep", "1"),
    "benchmark": (),
    "survive": (),
    "plan": ("--run", "latest"),
}
"""Commands that ask something of a store that is there."""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; exit code, and what it printed on both streams."""

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as leaving:
            main(words)
        printed = capfd.readouterr()
        return int(leaving.value.code or 0), printed.out + printed.err

    return run


@pytest.mark.parametrize("store", BAD_STORES)
@pytest.mark.parametrize("command", NOT_THERE)
def test_a_store_that_cannot_be_is_told_before_anything_starts(
    command: str, store: str, run: Run
) -> None:
    """Exit code 2, one line, no traceback, no talk of credentials."""
    code, text = run(command, *NOT_THERE[command], "--store", store)
    assert (code, text.count("\n")) == (2, 1), text
    assert BAD_STORES[store] in text
    assert STARTING not in text
    assert "redentials" not in text


@pytest.mark.parametrize("store", ["nosuch://bucket/store", "s3://"])
@pytest.mark.parametrize("command", ABOUT_A_STORE)
def test_a_place_nobody_can_open_is_told(
    command: str, store: str, run: Run, tmp_path: Path
) -> None:
    """The siblings: whatever asks something of a store."""
    words = [word.replace("OUT", str(tmp_path / "out")) for word in ABOUT_A_STORE[command]]
    code, text = run(command, "--store", store, *words)
    assert (code, text.count("\n")) == (2, 1), text
    assert BAD_STORES[store] in text


@pytest.mark.parametrize("command", ["benchmark", "survive"])
def test_a_run_about_another_asks_for_it_first(command: str, run: Run, tmp_path: Path) -> None:
    """Prefect takes seconds; a folder that is no store is told at once."""
    code, text = run(command, "--store", str(tmp_path))
    assert code == 2
    assert STARTING not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", NOT_THERE)
def test_what_a_run_reads_is_looked_for_before_anything_starts(
    command: str, run: Run, tmp_path: Path
) -> None:
    """A file that is not there: exit code 2, its name, nothing made."""
    missing = tmp_path / "none.csv"
    store = tmp_path / "store"
    words = ["--store", str(store), "--set", f"sources.0.uri={missing}"]
    code, text = run(command, *NOT_THERE[command], *words)
    assert code == 2
    assert text.startswith(f"error: {missing}: expected at least one file")
    assert STARTING not in text
    assert not store.exists()


def test_a_source_may_not_be_of_a_kind_nobody_knows(run: Run, tmp_path: Path) -> None:
    """As a store."""
    words = ["--store", str(tmp_path / "store"), "--set", "sources.0.uri=nosuch://a/b.csv"]
    code, text = run("refresh", "--preset", "demo", *words)
    assert code == 2
    assert "found nosuch://" in text
    assert STARTING not in text


def test_wrong_sql_is_the_users(tmp_path: Path, run: Run) -> None:
    """Exit code 2, as for any other wrong word."""
    store = build_small_store(str(tmp_path / "store"))
    for sql in ("SELEC 1", "SELECT nothing FROM runs", "SELECT 1/'a' FROM runs", "DROP TABLE runs"):
        code, text = run("audit", "--store", store.url, sql)
        assert code == 2, text
        assert text.startswith("error: audit query"), text


@pytest.mark.engine
@pytest.mark.usefixtures("prefect_server")
def test_a_full_disk_ends_a_run_by_one_message_and_the_next_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished before is kept, the run is recorded as failed, the store is sound."""
    store = tmp_path / "store"
    put_file = storage.put_file
    n_put = 0

    def fill(local: Path, target: Path) -> None:
        nonlocal n_put
        n_put += 1
        if n_put > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put_file(local, target)

    words = ["detect", *NOT_THERE["detect"], "--store", str(store), *DETECTION]
    monkeypatch.setattr(storage, "put_file", fill)
    code, text = run(*words)
    assert code == 1, text
    message = text.splitlines()[-1]
    assert message.startswith(f"error: {store.as_uri()}")
    assert "The disk or the quota is full. Free some space" in message
    monkeypatch.undo()
    kept = list(store.glob("artifacts/*/*/manifest.json"))
    opened = Store(str(store))
    assert [read_run(opened, run_id).status for run_id in list_run_ids(opened)] == ["failed"]
    assert verify_store(str(store)).problems == []
    code, text = run(*words)
    assert code == 0, text
    assert set(kept) <= set(store.glob("artifacts/*/*/manifest.json"))


DETECTION = (
    *("--set", "sources.0.max_rows=40"),
    *("--set", "sources.1.max_rows=40"),
    *("--set", "activations.layers=[1]"),
)
"""What makes the demo's detection a matter of a second."""


def run_command_at(api_url: str, words: Sequence[str]) -> None:
    """The command line in a process of its own, which finds the tests' Prefect server."""
    with temporary_settings({PREFECT_API_URL: api_url}):
        main(words)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.usefixtures("prefect_server")
def test_two_commands_at_once_into_one_store_both_end_well(tmp_path: Path) -> None:
    """Both are recorded, and nothing is wrong with the store."""
    store = str(tmp_path / "store")
    context: Any = prepare_refreshes()
    words = ["detect", *NOT_THERE["detect"], "--store", store, *DETECTION]
    processes = [start(context, run_command_at, [find_api_url(), words]) for _ in range(2)]
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    opened = Store(store)
    statuses = [read_run(opened, run_id).status for run_id in list_run_ids(opened)]
    assert statuses == ["finished", "finished"]
    assert verify_store(store).problems == []


@pytest.mark.parametrize("module", ["eigenshift", "flows", "flows.command_line"])
def test_the_command_line_is_a_module_too(module: str) -> None:
    """Whatever a person tries after `python -m`."""
    done = subprocess.run(
        [sys.executable, "-m", module, "runs", "--store", "nosuch://a"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "found nosuch://" in done.stderr
