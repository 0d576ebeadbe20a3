#!/usr/bin/env python
"""A Dask cluster whose workers are Slurm jobs, for `execution.runner: dask`; run on a login node.

    python deployments/slurm/start_cluster.py --queue gpu --account lab --jobs 8 --gpus 1 \
        --cpus 8 --memory 64GB --walltime 04:00:00 --interface ib0

It says which `execution.cluster_address` a run is to be given, keeps the number of jobs (one that
ended is submitted anew), and takes all of them down when it is stopped. `--script` prints the job's
script and submits nothing. Each job is one worker with one thread, as our tasks want it; what every
job needs first (modules, credentials of the store) goes into `--prologue`. Anybody who reaches the
scheduler can run code in the workers: the interface must be of a network that is closed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any

NO_PROFILING = "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False"
"""It can lock a worker before Python 3.11.9 (docs/devices.md)."""
MARGIN_SECONDS = 300
"""Before the end of its job a worker hands over what it holds and ends by itself."""


def make_cluster(options: argparse.Namespace) -> Any:
    """The cluster, its scheduler here and no job yet."""
    from dask_jobqueue import SLURMCluster

    lifetime = parse_walltime(options.walltime) - MARGIN_SECONDS
    if lifetime < MARGIN_SECONDS:
        raise SystemExit(
            f"--walltime: expected at least {2 * MARGIN_SECONDS // 60} minutes, found "
            f"{options.walltime}. A worker ends {MARGIN_SECONDS // 60} minutes before its job."
        )
    worker = ["--no-dashboard", "--memory-limit", "0", "--lifetime", f"{lifetime}s"]
    directives = []
    if options.gpus:
        worker += ["--resources", "GPU=1"]
        directives.append(f"--gres=gpu:{options.gpus}")
    return SLURMCluster(
        queue=options.queue,
        account=options.account,
        cores=1,
        processes=1,
        job_cpu=options.cpus,
        memory=options.memory,
        walltime=options.walltime,
        interface=None if options.host else options.interface,
        job_name="eigenshift-worker",
        job_extra_directives=directives,
        job_script_prologue=[
            NO_PROFILING,
            f"export OMP_NUM_THREADS={options.cpus}",
            *options.prologue,
        ],
        worker_extra_args=worker,
        log_directory=options.log_directory,
        python=options.python,
        death_timeout=MARGIN_SECONDS,
        scheduler_options={"dashboard_address": "127.0.0.1:0", "host": options.host},
    )


def parse_walltime(text: str) -> int:
    """Seconds of Slurm's [days-]hours:minutes:seconds."""
    days, _, clock = text.rpartition("-")
    try:
        hours, minutes, seconds = (int(part) for part in clock.split(":"))
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except ValueError:
        raise SystemExit(
            f"--walltime: expected [days-]hours:minutes:seconds, found {text!r}. Write 04:00:00."
        ) from None


def parse_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What may be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="jobs, of one worker each")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--account", help="that is charged")
    parser.add_argument("--cpus", type=int, default=4, help="of a job")
    parser.add_argument("--gpus", type=int, default=0, help="of a job; set gpus_per_task: 1 then")
    parser.add_argument("--memory", default="32GB", help="of a job")
    parser.add_argument("--walltime", default="04:00:00", help="of a job")
    parser.add_argument("--interface", help="network interface of scheduler and workers, as ib0")
    parser.add_argument("--host", help="address of the scheduler, in place of an interface's")
    parser.add_argument("--python", default=sys.executable, help="in the jobs")
    parser.add_argument("--prologue", action="append", default=[], help="line before the worker")
    parser.add_argument("--log-directory", help="for the jobs' output")
    parser.add_argument("--script", action="store_true", help="print the job's script only")
    return parser.parse_args(given)


def main() -> None:
    """Keep a cluster until this is stopped."""
    options = parse_options()
    with make_cluster(options) as cluster:
        if options.script:
            print(cluster.job_script())
            return
        cluster.adapt(minimum_jobs=options.jobs, maximum_jobs=options.jobs)
        print(f"execution.runner=dask execution.cluster_address={cluster.scheduler_address}")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("taking the jobs down", file=sys.stderr)


if __name__ == "__main__":
    main()
