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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
def work_in_small_steps(n_tasks: int) -> list[tuple[int, int]]:
    """Many tiny tasks, submitted at once; a result that is too long in coming ends the run."""
    with run_tasks(ON_DASK):
        futures = [work_a_little.submit(place) for place in range(n_tasks)]
        return [future.result(timeout=LONGEST_WAIT) for future in futures]


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
def test_no_task_is_lost_nor_waited_for_when_workers_are_killed() -> None:
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

    with disturbing(disturb) as killed:
        found = work_in_small_steps(N_TASKS)
    assert [place for place, _ in found] == list(range(N_TASKS))
    assert len(killed) >= N_KILLED // 2
    assert len({process for _, process in found}) > 2  # new workers took the place of dead ones


@pytest.mark.usefixtures("_other_work")
def test_a_worker_that_falls_silent_is_given_up() -> None:
    """One stands still for good, as by a lock; Dask gives its tasks to the other after its limit.

    The limit is Dask's `distributed.scheduler.worker-ttl`, five minutes, here five seconds.
    """
    import dask

    def disturb(is_over: threading.Event) -> list[int]:
        while not is_over.wait(0.2):
            workers = list_workers()
            if len(workers) == 2 and sum(workers[0].cpu_times()[:2]) > 1:  # it has imported
                os.kill(workers[0].pid, signal.SIGSTOP)
                return [workers[0].pid]
        return []

    with dask.config.set({"distributed.scheduler.worker-ttl": "5s"}), disturbing(disturb) as silent:
        found = work_in_small_steps(N_TASKS)
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


@contextmanager
def disturbing(disturb: Callable[[threading.Event], list[int]]) -> Iterator[list[int]]:
    """Disturb a run from another thread until it is over; gives whom it met, at the end."""
    met: list[int] = []
    is_over = threading.Event()
    thread = threading.Thread(target=lambda: met.extend(disturb(is_over)))
    thread.start()
    started = time.monotonic()
    try:
        yield met
    finally:
        is_over.set()
        thread.join()
        print(f"{time.monotonic() - started:.0f} s, disturbed: {len(met)}")
