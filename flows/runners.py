"""Where the tasks of a run are carried out: threads, processes, Dask or Ray (`execution.runner`).

Tasks take references and return references, so nothing large travels; a worker process keeps the
models it has loaded (`eigenshift.model.loading`). Dask and Ray give the task of a worker that died
to another one; a pool of processes ends with the first that dies, and the next run goes on from
what is finished. What a GPU claim means on a cluster is in docs/devices.md.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from eigenshift.base.errors import SettingsError
from eigenshift.base.machine import count_cores
from eigenshift.settings import ExecutionSettings, Runner
from flows.overlap import has_server
from flows.server_check import tell_stopped
from flows.stopping import on_stop
from tasks.stage import claims_gpu

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner
    from prefect_ray import RayTaskRunner

LOOPBACK = "127.0.0.1"
THREADS_VARIABLE = "OMP_NUM_THREADS"
NO_PROFILING = {"distributed.worker.profile.enabled": False}
"""For Dask workers: their profiler asks for the frames of all threads 100 times a second, which can
lock a process for good before Python 3.11.9 (cpython issue 106883), and nobody reads its result."""
WITHOUT_WORKERS = "5 minutes"
"""So long a task may find no worker that could do it; then it fails, and the run with it. By itself
Dask would wait for ever, and it does not replace a worker that is killed while it starts."""
UNTIL_REPLACED = "10 minutes"
"""So long a killed worker's successor may take to start. By itself Dask gives its place up for good
after 15 seconds, which a busy machine needs for the imports alone: one of two was gone then."""
GPU = "GPU"
"""Name of the resource that Dask workers with a GPU offer."""
PR_SET_PDEATHSIG = 1


@contextmanager
def run_tasks(execution: ExecutionSettings) -> Iterator[None]:
    """Carry out the tasks submitted inside the block where the settings say; call in a flow.

    Raises:
        SettingsError: The runner's package is not installed, or a cluster does not answer.
    """
    flow_run = FlowRunContext.get()
    if flow_run is None:
        raise RuntimeError("run_tasks: expected to be called inside a flow")
    server = PREFECT_API_URL.value()
    with (
        on_stop(partial(tell_stopped, server, flow_run.flow_run)),
        _shared_server(execution.runner),
        _start(execution) as runner,
        flow_run.model_copy(update={"task_runner": runner}),
    ):
        yield


def make_runner(execution: ExecutionSettings) -> TaskRunner[Any]:
    """The task runner of the settings, not started."""
    made: TaskRunner[Any] = MAKE_RUNNER[execution.runner](execution)
    return made


@contextmanager
def _start(execution: ExecutionSettings) -> Iterator[TaskRunner[Any]]:
    runner = make_runner(execution)
    with runner:
        if execution.runner is Runner.dask:
            _greet_dask(runner, execution)
        yield runner


@contextmanager
def _shared_server(runner: Runner) -> Iterator[None]:
    """Let other processes use the server embedded in this command; each would start its own."""
    if runner is Runner.threads or has_server():
        yield
        return
    # imported only where it is used: nearly two seconds of the start of every command otherwise
    from prefect.server.api.server import SubprocessASGIServer

    with temporary_settings({PREFECT_API_URL: SubprocessASGIServer().api_url}):
        yield


def _make_threads(execution: ExecutionSettings) -> TaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=execution.concurrency)


def _make_processes(execution: ExecutionSettings) -> TaskRunner[Any]:
    return ProcessPoolTaskRunner(
        max_workers=execution.concurrency,
        initializer=_prepare_process,
        initargs=(os.getpid(), share_threads(execution.concurrency)),
    )


def _prepare_process(parent: int, n_threads: str) -> None:
    """In a new process of the pool: its share of the cores, and an end if its parent is killed."""
    os.environ[THREADS_VARIABLE] = n_threads
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before the line above
            os.kill(os.getpid(), signal.SIGKILL)


def share_threads(n_workers: int) -> str:
    """Threads for each of several workers on this machine; what the user has set wins."""
    return os.environ.get(THREADS_VARIABLE) or str(max(1, count_cores() // n_workers))


def _make_dask(execution: ExecutionSettings) -> DaskTaskRunner:
    _require("prefect_dask", Runner.dask)
    # read when dask is imported, here and in its workers
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    os.environ.setdefault("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", UNTIL_REPLACED)
    import dask
    from prefect_dask import DaskTaskRunner

    class ClaimingDaskTaskRunner(DaskTaskRunner):  # type: ignore[misc]
        """Tasks that run a model claim a GPU."""

        def submit(self, task: Any, *arguments: Any, **named: Any) -> Any:
            if not execution.gpus_per_task or not claims_gpu(task.name):
                return super().submit(task, *arguments, **named)
            with dask.annotate(resources={GPU: execution.gpus_per_task}):
                return super().submit(task, *arguments, **named)

    if execution.cluster_address is not None:
        return ClaimingDaskTaskRunner(address=execution.cluster_address)
    return ClaimingDaskTaskRunner(
        cluster_class=_start_local_cluster,
        cluster_kwargs={
            "n_workers": execution.concurrency,
            "threads_per_worker": 1,
            "dashboard_address": None,
            "host": LOOPBACK,
            "memory_limit": 0,  # a model may need more than an even share, and would be killed
            "config": NO_PROFILING,
            "env": {THREADS_VARIABLE: share_threads(execution.concurrency)},
            "resources": {GPU: float(_count_gpus(execution))} if execution.gpus_per_task else None,
        },
    )


def _start_local_cluster(**given: Any) -> Any:
    """A cluster of this machine that does not wait for workers for ever."""
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.scheduler.no-workers-timeout": WITHOUT_WORKERS}):
        return LocalCluster(**given)


def _greet_dask(runner: Any, execution: ExecutionSettings) -> None:
    """Connect now, so that a wrong address is found before the first task, and pin GPUs."""
    try:
        client = runner.client
    except (OSError, TimeoutError, ValueError) as error:
        raise SettingsError(
            f"execution.cluster_address: expected a Dask scheduler at {execution.cluster_address}, "
            f"found none that answers ({type(error).__name__}). Start it with `dask scheduler`, or "
            "leave the setting empty to start workers here."
        ) from error
    if execution.gpus_per_task and execution.cluster_address is None:
        import torch

        client.register_plugin(make_gpu_pin(torch.cuda.device_count(), _count_gpus(execution)))


def _count_gpus(execution: ExecutionSettings) -> int:
    """Whole GPUs that a worker has for a task."""
    return max(1, math.ceil(execution.gpus_per_task))


def make_gpu_pin(n_gpus: int, n_per_worker: int = 1) -> Any:
    """A Dask plugin that gives each worker started here its GPUs, by the worker's number.

    Args:
        n_gpus: Of this machine; beyond them workers begin anew with the first.
        n_per_worker: A model that is divided over several needs as many.
    """
    from distributed import WorkerPlugin

    class GpuPin(WorkerPlugin):  # type: ignore[misc]
        """Works because CUDA is looked at only when the first model is loaded."""

        name = "eigenshift-gpu-pin"

        def setup(self, worker: Any) -> None:
            """Called once in each worker, also in one that replaces a dead one."""
            if n_gpus:
                first = int(worker.name) * n_per_worker
                mine = dict.fromkeys((first + more) % n_gpus for more in range(n_per_worker))
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, mine))

    return GpuPin()


def _make_ray(execution: ExecutionSettings) -> RayTaskRunner:
    _require("prefect_ray", Runner.ray)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    class ClaimingRayTaskRunner(RayTaskRunner):  # type: ignore[misc]
        """Tasks that run a model claim a GPU; a worker keeps its models for the next task."""

        def submit(self, task: Any, *arguments: Any, **named: Any) -> Any:
            claims = execution.gpus_per_task if claims_gpu(task.name) else 0
            with remote_options(num_gpus=claims, max_calls=0):
                return super().submit(task, *arguments, **named)

    threads = {THREADS_VARIABLE: share_threads(execution.concurrency)}
    if execution.cluster_address is not None:
        return ClaimingRayTaskRunner(address=execution.cluster_address)
    return ClaimingRayTaskRunner(
        init_kwargs={
            "num_cpus": execution.concurrency,
            "include_dashboard": False,
            "object_store_memory": 100 << 20,  # only references travel
            "_node_ip_address": LOOPBACK,
            "runtime_env": {"env_vars": threads},
            "log_to_driver": False,
            "logging_level": "ERROR",
        }
    )


def _require(package: str, runner: Runner) -> None:
    if find_spec(package) is None:
        raise SettingsError(
            f"execution.runner: expected the package of {runner.value!r}, found it is not "
            f"installed. Install it with pip install 'eigenshift[{runner.value}]', or choose "
            "threads or processes."
        )


MAKE_RUNNER: dict[Runner, Callable[[ExecutionSettings], Any]] = {
    Runner.threads: _make_threads,
    Runner.processes: _make_processes,
    Runner.dask: _make_dask,
    Runner.ray: _make_ray,
}
