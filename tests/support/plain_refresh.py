"""The stages of a refresh in a plain loop: the same library calls, no Prefect engine.

Tasks run as the functions they wrap, in a thread pool of the same size. For comparisons only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from eigenshift.settings import RefreshSettings, load_preset
from eigenshift.store.artifacts import StageResult


class PlainFuture:
    """What the flows ask of a task's future: its result."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self) -> StageResult:
        """Wait for the stage's result."""
        found: StageResult = self._future.result().data
        return found


def refresh_plainly(settings: RefreshSettings) -> Any:
    """Run a refresh with tasks called directly; returns its outcome."""
    from prefect import Task

    import flows.refresh

    with ThreadPoolExecutor(settings.execution.concurrency) as pool:

        def submit(task: Task[Any, Any], *arguments: Any) -> PlainFuture:
            function: Callable[..., Any] = task.fn
            return PlainFuture(pool.submit(function, *arguments))

        engine, Task.submit = Task.submit, submit  # type: ignore[method-assign,assignment]
        publish, run_tasks = flows.refresh.publish_refresh, flows.refresh.run_tasks
        flows.refresh.publish_refresh = lambda *_: None
        flows.refresh.run_tasks = lambda _: nullcontext()
        try:
            return flows.refresh._refresh(settings)
        finally:
            Task.submit = engine  # type: ignore[method-assign]
            flows.refresh.publish_refresh = publish
            flows.refresh.run_tasks = run_tasks


if __name__ == "__main__":
    outcome = refresh_plainly(load_preset("demo", sys.argv[1:]))
    print(outcome.as_contract()["status"])
