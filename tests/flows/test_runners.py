"""Tasks in threads, processes, on Dask and Ray: same artifacts, and lost workers are survived."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import RunRecord, list_run_ids, read_run
from eigenshift.settings import DetectionSettings, ExecutionSettings, RefreshSettings, Runner
from eigenshift.store.storage import Store
from eigenshift.upkeep.verification import verify_store
from tests.support.ray_installed import needs_ray

OTHERS = [
    pytest.param("processes"),
    pytest.param("dask"),
    pytest.param("ray", marks=needs_ray),
]


def test_runners_are_those_of_the_settings() -> None:
    """Threads and processes get as many workers as the settings say; Dask is the cluster's."""
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
    from prefect_dask import DaskTaskRunner

    from flows.runners import make_runner

    threads = make_runner(ExecutionSettings(concurrency=3))
    assert threads == ThreadPoolTaskRunner(max_workers=3)
    processes = make_runner(ExecutionSettings(runner=Runner.processes, concurrency=3))
    assert processes == ProcessPoolTaskRunner(max_workers=3)
    local = make_runner(ExecutionSettings(runner=Runner.dask, concurrency=3))
    assert isinstance(local, DaskTaskRunner)
    assert local.cluster_kwargs["n_workers"] == 3
    assert local.cluster_kwargs["host"] == "127.0.0.1"
    address = "tcp://10.0.0.1:8786"
    remote = make_runner(ExecutionSettings(runner=Runner.dask, cluster_address=address))
    assert (remote.address, remote.cluster_kwargs) == (address, {})


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra to install."""
    import flows.runners

    monkeypatch.setattr(flows.runners, "find_spec", lambda _: None)
    for runner in (Runner.dask, Runner.ray):
        with pytest.raises(SettingsError, match=rf"eigenshift\[{runner.value}\]"):
            flows.runners.make_runner(ExecutionSettings(runner=runner))


def test_local_workers_get_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker k takes GPU k modulo their number; without GPUs nothing is set."""
    from flows.runners import make_gpu_pin

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    make_gpu_pin(0).setup(SimpleNamespace(name=5))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    make_gpu_pin(4).setup(SimpleNamespace(name=5))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_worker_of_a_divided_model_gets_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as its tasks claim, its own as far as there are enough; never one twice."""
    from flows.runners import make_gpu_pin

    for name, n_gpus, expected in ((0, 4, "0,1"), (1, 4, "2,3"), (2, 4, "0,1"), (1, 1, "0")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        make_gpu_pin(n_gpus, 2).setup(SimpleNamespace(name=name))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_local_workers_are_not_profiled() -> None:
    """Dask's profiler can lock a worker for good before Python 3.11.9; it is on by default."""
    from flows.runners import make_runner

    with make_runner(ExecutionSettings(runner=Runner.dask, concurrency=1)) as runner:
        callbacks = runner.client.run(lambda dask_worker: list(dask_worker.periodic_callbacks))
    assert len(callbacks) == 1
    for names in callbacks.values():
        assert "heartbeat" in names
        assert "profile" not in names


def test_without_workers_tasks_fail_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask does not replace a worker that dies as it starts, and would wait for ever for the last.

    The limit is that of `flows.runners.WITHOUT_WORKERS`, here a second.
    """
    import flows.runners

    monkeypatch.setattr(flows.runners, "WITHOUT_WORKERS", "1s")
    execution = ExecutionSettings(runner=Runner.dask, concurrency=1)
    with flows.runners.make_runner(execution) as runner:
        runner.client.retire_workers()
        future = runner.client.submit(int, 1)
        with pytest.raises(Exception, match=r"(?i)worker") as failed:
            future.result(timeout=120)
    assert not isinstance(failed.value, TimeoutError)


@pytest.mark.engine
def test_a_scheduler_that_does_not_answer_is_explained(
    prefect_server: None, load_small: Callable[..., RefreshSettings]
) -> None:
    """A wrong address ends the run at once with the setting's name."""
    import dask

    from flows.detect import run_detect

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(SettingsError, match=r"execution\.cluster_address"),
    ):
        run_detect(
            _as_detection(
                load_small("execution.runner=dask", "execution.cluster_address=tcp://127.0.0.1:9")
            )
        )


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("runner", OTHERS)
def test_every_runner_makes_the_artifacts_that_threads_make(
    runner: str, finished_store: Path, load_small: Callable[..., RefreshSettings]
) -> None:
    """Same fingerprints, same rows, same metrics, and a store that verifies."""
    from flows.refresh import run_refresh

    settings = load_small(f"execution.runner={runner}")
    run_refresh(settings)
    found, expected = _read_last(Store(settings.store)), _read_last(Store(str(finished_store)))
    assert [use.fingerprint for use in found.artifacts] == [
        use.fingerprint for use in expected.artifacts
    ]
    assert found.metrics == expected.metrics
    assert not verify_store(settings.store).problems


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("runner", OTHERS)
def test_a_worker_loads_a_model_once(
    runner: str, prefect_server: None, load_small: Callable[..., RefreshSettings]
) -> None:
    """Twelve tasks in two workers, none of them this process, find two loaded models."""
    from tests.support.worker_tasks import ask_workers

    settings = load_small(f"execution.runner={runner}")
    answers = ask_workers(settings.model, settings.execution, 12)
    workers = {process for process, _, _ in answers}
    assert len(workers) <= 2
    assert os.getpid() not in workers
    assert len({(process, model) for process, model, _ in answers}) == len(workers)
    assert {n_threads for _, _, n_threads in answers} == {os.environ["OMP_NUM_THREADS"]}


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("runner", OTHERS[1:])
def test_a_lost_worker_does_not_end_the_run(
    runner: str, prefect_server: None, load_small: Callable[..., RefreshSettings]
) -> None:
    """A worker is killed while shards are extracted; every shard is there at the end."""
    from flows.detect import run_detect

    settings = _load_large(load_small, runner)
    with _killing_a_worker(Store(settings.store), runner) as killed:
        run_detect(settings)
    (at_kill,) = killed
    extracted = next(
        stage
        for stage in _read_last(Store(settings.store)).stages
        if stage.name == "extract_activations"
    )
    assert 0 < at_kill < extracted.shards
    assert extracted.shards_cached < extracted.shards
    assert not verify_store(settings.store).problems


@pytest.mark.engine
@pytest.mark.slow
def test_a_pool_of_processes_ends_with_the_first_lost_one_and_is_resumed(
    prefect_server: None, load_small: Callable[..., RefreshSettings]
) -> None:
    """The run fails with a reason in its record; the next one finds the finished shards."""
    from flows.detect import run_detect

    settings = _load_large(load_small, "processes")
    store = Store(settings.store)
    with _killing_a_worker(store, "processes") as killed, pytest.raises(Exception, match="process"):
        run_detect(settings)
    record = _read_last(store)
    assert (record.status, record.error) == ("failed", "BrokenProcessPool")
    run_detect(settings)
    extracted = next(
        stage for stage in _read_last(store).stages if stage.name == "extract_activations"
    )
    assert killed[0] <= extracted.shards_cached < extracted.shards


def _load_large(load_small: Callable[..., RefreshSettings], runner: str) -> DetectionSettings:
    """Enough shards for a worker to be killed in their midst."""
    return _as_detection(
        load_small(
            *(f"sources.{place}.max_rows=1500" for place in (0, 1)), f"execution.runner={runner}"
        )
    )


def _as_detection(settings: RefreshSettings) -> DetectionSettings:
    return DetectionSettings.model_validate(settings.model_dump())


def _read_last(store: Store) -> RunRecord:
    return read_run(store, list_run_ids(store)[-1])


@contextmanager
def _killing_a_worker(store: Store, runner: str) -> Iterator[list[int]]:
    """Kill one worker once the first shards are extracted; gives how many were then."""
    killed: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(0.02):
            n_done = sum(path.endswith("manifest.json") for path in _list_activations(store))
            workers = _list_workers(runner) if n_done >= 3 else []
            if workers:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(n_done)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


def _list_activations(store: Store) -> list[str]:
    return store.list_paths("artifacts/activations")


def _list_workers(runner: str) -> list[psutil.Process]:
    """The processes that do this process's tasks, the busiest first."""
    sign = "ray::extract-activations" if runner == "ray" else "multiprocessing.spawn"
    found: list[tuple[float, Any]] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if sign in " ".join(process.cmdline()):
                found.append((sum(process.cpu_times()[:2]), process))
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda pair: -pair[0])]
