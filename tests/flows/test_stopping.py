"""SIGTERM and Ctrl-C end a run within seconds: one line, its JSON object, its record, no claims."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eigenshift.datasets.stages import READ_FILE
from eigenshift.ledger.presence import list_present
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.concurrency import ask_concurrently
from eigenshift.store.filesystems import RetryPolicy
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep import verification
from eigenshift.upkeep.verification import verify_store
from flows import journal as journal_module
from flows import run_commands, stopping
from flows.command_line import main
from flows.journal import RunJournal
from tests.flows.conftest import SMALL
from tests.support.killed_work import prepare, start

ROOT = Path(__file__).parents[2]
SECONDS_TO_END = 10.0
"""A pod is killed 30 seconds after its SIGTERM."""
SECONDS_TO_BEGIN = 300.0
LONG = 600.0
FIRST = replace(READ_FILE, name="first")


class Finished:
    """The future of a task that has ended."""

    def __init__(self, result: StageResult) -> None:
        self._result = result

    def result(self, timeout: float | None = None) -> StageResult:
        """What it made."""
        return self._result


def make(url: str) -> StageResult:
    """A small artifact."""

    def work(workspace: Workspace) -> None:
        workspace.write_json("content.json", {})

    return ArtifactStore(url).produce("step", step_version=1, settings={}, inputs=[], work=work)


def fail(_path: object = None) -> None:
    """A request that storage does not answer."""
    raise TimeoutError("made up")


class Situations:
    """What a run is at when the signal comes; each tells by a file that it is there."""

    @staticmethod
    def working(reached: Path) -> None:
        """A task in a thread, which nothing interrupts, and the flow waits for it."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: (reached.touch(), time.sleep(LONG))).result()

    @staticmethod
    def trying_again(reached: Path) -> None:
        """A request of the flow itself is tried again, with long waits between."""
        reached.touch()
        RetryPolicy(100, LONG, LONG).call("place", "read", fail)

    @staticmethod
    def storage_is_gone(reached: Path) -> None:
        """As `working`, and the record cannot be written any more."""
        stopping.SECONDS_TO_TELL = 1.0
        journal_module.write_run = lambda *_: time.sleep(LONG)  # type: ignore[assignment]
        Situations.working(reached)


def run_until_stopped(folder: Path, situation: str, words: Sequence[str]) -> None:
    """A process that begins a run and comes into the situation, under Prefect's own handler."""
    from prefect.utilities.engine import capture_sigterm

    import flows.refresh

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests are in the background
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def run_refresh(settings: RefreshSettings) -> None:
        journal = RunJournal("refresh", settings)
        with capture_sigterm(), journal.recording():
            journal.collect(FIRST, [Finished(make(settings.store))])  # type: ignore[list-item]
            getattr(Situations, situation)(folder / "reached")

    flows.refresh.run_refresh = run_refresh  # type: ignore[assignment]
    run_commands.create_home = lambda _: None
    main(["refresh", "--preset", "demo", "--store", str(folder / "store"), *words])


def verify_until_stopped(folder: Path) -> None:
    """A process that verifies a store whose storage does not answer, by requests at once."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def ask(place: str) -> None:
        (folder / place).touch()
        RetryPolicy(100, LONG, LONG).call(place, "read", fail)

    verification.verify_store = lambda _: ask_concurrently(ask, ["reached", "other"])  # type: ignore
    main(["verify", "--store", str(folder / "store")])


@pytest.fixture(scope="module")
def context() -> Any:
    """Where processes to be stopped come from."""
    return prepare(["flows.refresh", "flows.run_commands", "flows.server_check", __name__])


@pytest.fixture
def stop(context: Any, tmp_path: Path) -> Callable[..., tuple[int, float]]:
    """Stop a run in a situation; its exit code, and the seconds it took to end."""

    def stop(situation: str, number: int, *words: str, times: int = 1) -> tuple[int, float]:
        if situation == "verify":
            process = start(context, verify_until_stopped, [tmp_path])
        else:
            process = start(context, run_until_stopped, [tmp_path, situation, words])
        deadline = time.monotonic() + SECONDS_TO_BEGIN
        while not (tmp_path / "reached").exists():
            assert process.exitcode is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        began = time.monotonic()
        for _ in range(times):
            os.kill(process.pid, number)
        process.join(SECONDS_TO_END)
        took = time.monotonic() - began
        process.kill()
        process.join()
        return process.exitcode, took

    return stop


@pytest.mark.parametrize(
    ("situation", "number", "times"),
    [
        ("working", signal.SIGTERM, 1),
        ("working", signal.SIGTERM, 2),  # as `timeout` sends it
        ("working", signal.SIGINT, 1),
        ("trying_again", signal.SIGINT, 1),
    ],
)
def test_a_run_that_is_stopped_ends_at_once(
    stop: Callable[..., tuple[int, float]],
    tmp_path: Path,
    situation: str,
    number: signal.Signals,
    times: int,
) -> None:
    """One line, the JSON object, the signal's exit code, a record, no announcement; work stays."""
    code, seconds = stop(situation, number, "--json", times=times)
    assert code == 128 + number
    assert seconds < SECONDS_TO_END
    told = [
        line for line in (tmp_path / "err").read_text().splitlines() if "storage fault" not in line
    ]
    assert told[-1].startswith(f"error: stopped by {number.name}. Finished work is kept")
    assert len(told) == 4  # Prefect starts, the run, the stage that ended, and this
    found = json.loads((tmp_path / "out").read_text())
    store = Store(str(tmp_path / "store"))
    assert (found["status"], found["error"]) == ("failed", f"stopped by {number.name}")
    assert [stage["name"] for stage in found["stages"]] == ["first"]
    record = read_run(store, found["run_id"])
    assert (record.status, record.error) == ("failed", f"stopped by {number.name}")
    assert record.finished_at is not None
    assert list_present(store, "run") == []
    assert make(store.root).was_cached


def test_a_run_ends_in_time_where_storage_is_gone(
    stop: Callable[..., tuple[int, float]], tmp_path: Path
) -> None:
    """The record cannot be written; what is told on stdout is not lost with it."""
    code, seconds = stop("storage_is_gone", signal.SIGTERM, "--json")
    assert code == 128 + signal.SIGTERM
    assert seconds < SECONDS_TO_END
    assert json.loads((tmp_path / "out").read_text())["error"] == "stopped by SIGTERM"


def test_without_json_stdout_stays_empty(
    stop: Callable[..., tuple[int, float]], tmp_path: Path
) -> None:
    """One line on stderr says what happened."""
    code, _ = stop("working", signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert (tmp_path / "out").read_text() == ""


def test_ctrl_c_does_not_wait_for_requests_that_are_tried_again(
    stop: Callable[..., tuple[int, float]], tmp_path: Path
) -> None:
    """Commands that start no run: one line, exit code 130, and nothing is waited for."""
    code, seconds = stop("verify", signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert seconds < SECONDS_TO_END
    assert (tmp_path / "err").read_text().splitlines()[-1] == "error: stopped by SIGINT."


def test_signals_keep_their_meaning_in_a_process_that_is_not_ours(tmp_path: Path) -> None:
    """A notebook's, or that of tests: a run there changes no handler."""
    from tests.support.small_store import make_settings

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with RunJournal("refresh", make_settings(str(tmp_path / "store"))).recording():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def is_gone(group: int) -> bool:
    """Whether all processes of a group end soon."""
    deadline = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


WATCHED = """
import signal, sys, pathlib
from eigenshift.generation import continuations
inner = continuations._continue_prompts
def outer(*arguments, **named):
    pathlib.Path(sys.argv[1]).touch()
    return inner(*arguments, **named)
continuations._continue_prompts = outer
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.command_line import main
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_refresh_is_stopped_in_the_middle_of_a_generation(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Its own server gets the signal, too; no traceback, no process left; then it goes on."""
    overrides = [*SMALL, "generation.n_samples=300", "generation.n_tokens=64"]
    store = tmp_path / "store"

    def run(reached: Path) -> subprocess.Popen[str]:
        words = ["refresh", "--preset", "demo", "--store", str(store), "--json"]
        words += [word for override in overrides for word in ("--set", override)]
        environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
        environment.pop("PREFECT_API_URL", None)
        return subprocess.Popen(
            [sys.executable, "-c", WATCHED, str(reached), *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = run(tmp_path / "reached")
    deadline = time.monotonic() + SECONDS_TO_BEGIN * 2
    while not (tmp_path / "reached").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    began = time.monotonic()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=LONG)
    assert time.monotonic() - began < SECONDS_TO_END
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: stopped by {number.name}")
    found = json.loads(out.splitlines()[-1])
    assert (found["status"], found["error"]) == ("failed", f"stopped by {number.name}")
    assert is_gone(process.pid)
    overrides[-2:] = []
    again = run(tmp_path / "again")
    out, err = again.communicate(timeout=LONG)
    assert again.returncode in (0, 3), err
    outcome = json.loads(out.splitlines()[-1])
    resumed = read_run(Store(str(store)), outcome["run_id"])
    cached = {stage.name: stage.shards_cached for stage in resumed.stages}
    assert cached["identify_model"] == 1
    assert cached["extract_activations"] > 0
    assert len(list_run_ids(Store(str(store)))) == 2
    assert verify_store(str(store)).problems == []
