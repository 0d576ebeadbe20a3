"""A long run on two Dask workers that are killed, or fall silent, on a machine with other work.

What is held: every task is done, and nobody waits for one longer than `LONGEST_WAIT`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow

from eigenshift.settings import ExecutionSettings, Runner
from flows.runners import run_tasks
from tests.support.soak_tasks import work_a_little

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_server"),
]

N_TASKS, N_KILLED = 200, 6
LONGEST_WAIT = 120.0
"""Seconds for one result, the start of a new worker on a busy machine included."""
ON_DASK = ExecutionSettings(runner=Runner.dask, concurrency=2)


@flow
def work_in_small_steps(n_tasks: int, begun: str) -> list[tuple[int, int]]:
    """Many tiny tasks, submitted at once; a result that is too long in coming ends the run.

    Args:
        n_tasks: How many.
        begun: A file that is there from the first result on.
    """
    with run_tasks(ON_DASK):
        futures = [work_a_little.submit(place) for place in range(n_tasks)]
        futures[0].result(timeout=LONGEST_WAIT)
        Path(begun).touch()
        return [future.result(timeout=LONGEST_WAIT) for future in futures]


def run_disturbed(
    folder: Path, disturb: Callable[[threading.Event], list[int]]
) -> tuple[list[Any], list[int]]:
    """Results of a run, and the processes that `disturb` met from the first result on."""
    begun, is_over, met = folder / "begun", threading.Event(), list[int]()

    def wait_and_disturb() -> None:
        while not begun.exists():
            if is_over.wait(0.1):
                return
        met.extend(disturb(is_over))

    thread = threading.Thread(target=wait_and_disturb)
    thread.start()
    try:
        return work_in_small_steps(N_TASKS, str(begun)), met
    finally:
        is_over.set()
        thread.join()


@pytest.fixture
def _other_work() -> Iterator[None]:
    """As many busy processes as there are cores."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("_other_work")
def test_no_task_is_lost_nor_waited_for_when_workers_are_killed(tmp_path: Path) -> None:
    """Two hundred tasks, six workers killed at random moments: each task once in the result."""
    chance = random.Random(0)

    def disturb(is_over: threading.Event) -> list[int]:
        killed: list[int] = []
        while len(killed) < N_KILLED and not is_over.wait(chance.uniform(1, 4)):
            workers = list_workers()
            if workers:
                worker = chance.choice(workers)
                killed.append(worker.pid)
                worker.kill()
        return killed

    found, killed = run_disturbed(tmp_path, disturb)
    assert [place for place, _ in found] == list(range(N_TASKS))
    assert len(killed) >= N_KILLED // 2
    assert len({process for _, process in found}) > 2  # new workers took the place of dead ones


@pytest.mark.usefixtures("_other_work")
def test_a_worker_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    """One stands still for good, as by a lock; Dask gives its tasks to the other after its limit.

    The limit is Dask's `distributed.scheduler.worker-ttl`, five minutes, here half a minute: with
    five seconds workers that only import on a busy machine are given up, again and again.
    """
    import dask

    def disturb(_: threading.Event) -> list[int]:
        worker = list_workers()[0]
        os.kill(worker.pid, signal.SIGSTOP)
        return [worker.pid]

    with dask.config.set({"distributed.scheduler.worker-ttl": "30s"}):
        found, silent = run_disturbed(tmp_path, disturb)
    assert [place for place, _ in found] == list(range(N_TASKS))
    assert len(silent) == 1


def list_workers() -> list[psutil.Process]:
    """The worker processes of this process's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "multiprocessing.spawn" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
