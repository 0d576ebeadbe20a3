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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from eigenshift.settings import ExecutionSettings, Runner
from flows.runners import make_runner, run_tasks
from tests.support.soak_tasks import work_a_little

pytestmark = pytest.mark.slow

N_TASKS, N_KILLED = 200, 6
N_DONE_BEFORE = 5
"""Tasks that a worker does before it may be hit. A task that four workers died with ends a run, as
`KilledWorker`: where workers die faster than they work, that is what comes of it, in time."""
LONGEST_WAIT = 300.0
"""Seconds for one result, the start of a new worker on a busy machine included: as long as Dask
bears with a silent worker by itself."""
ON_DASK = ExecutionSettings(runner=Runner.dask, concurrency=2)


@task(cache_policy=NO_CACHE, persist_result=False)
def work(place: int, folder: str) -> tuple[int, int]:
    """One small step."""
    return work_a_little(place, folder)


@flow
def work_in_a_run(folder: str) -> list[tuple[int, int]]:
    """Many tiny tasks of a flow, submitted at once; a result that is too long in coming ends it."""
    with run_tasks(ON_DASK):
        futures = [work.submit(place, folder) for place in range(N_TASKS)]
        return [future.result(timeout=LONGEST_WAIT) for future in futures]


def work_on_a_cluster(folder: str) -> list[tuple[int, int]]:
    """The same on the cluster that a run starts, without Prefect, which takes most of the time."""
    with make_runner(ON_DASK) as runner:
        given = range(N_TASKS), [folder] * N_TASKS
        futures = runner.client.map(work_a_little, *given, pure=False)
        return [future.result(timeout=LONGEST_WAIT) for future in futures]


class Disturber:
    """Does something to workers that are at work, from a thread of its own.

    Args:
        folder: In which workers leave their numbers and those of their tasks.
        n_signals: How many workers get one.
        signal_number: Which.
    """

    def __init__(self, folder: Path, n_signals: int, signal_number: int) -> None:
        self.met: list[int] = []
        self._folder, self._n_signals, self._signal = folder, n_signals, signal_number
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._disturb)

    def __enter__(self) -> list[int]:
        self._thread.start()
        return self.met

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _disturb(self) -> None:
        chance = random.Random(0)
        while len(self.met) < self._n_signals:
            if self._is_over.wait(chance.uniform(0.5, 2)):
                return
            done = Counter(int(path.name.partition("-")[0]) for path in self._folder.iterdir())
            alive = [
                process
                for process, n_done in done.items()
                if n_done >= N_DONE_BEFORE
                and process not in self.met
                and psutil.pid_exists(process)
            ]
            if alive:
                self.met.append(chance.choice(alive))
                os.kill(self.met[-1], self._signal)


@pytest.fixture
def _other_work() -> Iterator[None]:
    """As many busy processes as there are cores."""
    command = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    yield
    for process in busy:
        process.kill()
        process.wait()


def check_after_kills(folder: Path, run: Callable[[str], list[tuple[int, int]]]) -> None:
    """Workers killed at random moments while they work: each task once in the result."""
    with Disturber(folder, N_KILLED, signal.SIGKILL) as killed:
        found = run(str(folder))
    assert [place for place, _ in found] == list(range(N_TASKS))
    assert killed
    assert len({process for _, process in found}) > 2  # new workers took the place of dead ones


@pytest.mark.usefixtures("_other_work")
def test_no_task_is_lost_nor_waited_for_when_workers_are_killed(tmp_path: Path) -> None:
    """Two hundred tasks, up to six workers killed, on the cluster of a run."""
    check_after_kills(tmp_path, work_on_a_cluster)


@pytest.mark.soak
@pytest.mark.engine
@pytest.mark.usefixtures("_other_work", "prefect_server")
def test_nor_in_a_run_of_prefects(tmp_path: Path) -> None:
    """The same by tasks of a flow, with a server, which notes each of them."""
    check_after_kills(tmp_path, work_in_a_run)


@pytest.mark.soak
@pytest.mark.usefixtures("_other_work")
def test_a_worker_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    """One stands still for good, as by a lock; Dask gives its tasks to the other after its limit.

    The limit is Dask's `distributed.scheduler.worker-ttl`, five minutes, here half a minute: with
    five seconds workers that only import on a busy machine are given up, again and again.
    """
    import dask

    with (
        dask.config.set({"distributed.scheduler.worker-ttl": "30s"}),
        Disturber(tmp_path, 1, signal.SIGSTOP) as silent,
    ):
        found = work_on_a_cluster(str(tmp_path))
    assert [place for place, _ in found] == list(range(N_TASKS))
    assert len(silent) == 1
