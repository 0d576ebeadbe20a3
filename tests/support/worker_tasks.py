"""Tasks that tell about the worker they ran in; module-level, so that workers can import them."""

from __future__ import annotations

import os

from prefect import flow, task

from eigenshift.model.loading import load_model
from eigenshift.settings import ExecutionSettings, ModelSettings
from flows.runners import run_tasks


@task
def find_model(settings: ModelSettings, _place: int) -> tuple[int, int, str]:
    """Process id, identity of the loaded model, threads that torch may use."""
    model = load_model(settings, "cpu")
    return os.getpid(), id(model), os.environ.get("OMP_NUM_THREADS", "")


@flow
def ask_workers(
    settings: ModelSettings, execution: ExecutionSettings, n_tasks: int
) -> list[tuple[int, int, str]]:
    """Ask several times where the model is."""
    with run_tasks(execution):
        return [
            future.result()
            for future in [find_model.submit(settings, place) for place in range(n_tasks)]
        ]
