#!/usr/bin/env bash
# dask-jobqueue 0.9.0 with distributed 2026.8.0: what is given as one word of `worker_extra_args` stands in the job's
# script without quotes, so the shell of the job makes several words of one with a space ("93300 seconds"); and
# `scheduler_options={"dashboard_address": None}`, which leaves the dashboard out of a LocalCluster, has it served on port
# 8787 of the scheduler's own address.
# Seen:
#   one word became: --lifetime 93300 seconds
#   dashboard_address None is served at http://127.0.0.1:8787/status
# Our guard: deployments/slurm/start_cluster.py gives words without spaces and puts the dashboard on loopback
# (tests/test_deployments.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check dask-jobqueue==0.9.0 \
    dask==2026.8.0 distributed==2026.8.0 bokeh==3.8.0
cd "$folder"
cat > look.py <<'PY'
from dask_jobqueue import SLURMCluster

if __name__ == "__main__":
    with SLURMCluster(
        cores=1,
        memory="1GB",
        worker_extra_args=["--lifetime", "93300 seconds"],
        scheduler_options={"host": "127.0.0.1", "dashboard_address": None},
    ) as cluster:
        script, dashboard = cluster.job_script(), cluster.dashboard_link
    word = script[script.index("--lifetime") :].splitlines()[0].strip()
    print(f"one word became: {word}")
    print(f"dashboard_address None is served at {dashboard}")
    assert word == "--lifetime 93300 seconds"
    assert dashboard == "http://127.0.0.1:8787/status"
PY
"$folder/venv/bin/python" look.py
