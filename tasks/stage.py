"""What all stage tasks have in common: retries, names in the UI, cached or made.

The store's manifests are the cache, so Prefect's own result cache is off: its records could
outlive the artifacts they stand for (docs/decisions/0002-cache-keys.md). A task that found its
artifact ends in a state named "Cached".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State
from prefect.tasks import Task, exponential_backoff

from eigenshift.artifacts import StageResult
from eigenshift.errors import EigenShiftError

RETRIES = 3
FIRST_DELAY_SECONDS = 1.0
JITTER = 0.5
PERMANENT_ERRORS = (
    EigenShiftError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
TRANSIENT_ERRORS = (OSError, TimeoutError, ConnectionError)
"""Storage and hub clients raise their network faults as these (requests and aiohttp derive from
OSError); whatever else goes wrong is a defect and is not tried again."""

MODEL_TASKS: set[str] = set()
"""Names of the tasks that run a model."""

F = TypeVar("F", bound=Callable[..., Any])


def stage_task(function: F) -> Task[Any, Any]:
    """Make a function a task of a stage, named after the function."""
    return task(
        function,
        name=function.__name__.replace("_", "-"),
        cache_policy=NO_CACHE,
        persist_result=False,
        result_serializer="json",
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(FIRST_DELAY_SECONDS),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_is_transient,
    )


def model_task(function: F) -> Task[Any, Any]:
    """Make a function a task of a stage that runs a model, and so may claim a GPU."""
    made = stage_task(function)
    MODEL_TASKS.add(made.name)
    return made


def report(result: StageResult) -> State[StageResult]:
    """Return a stage's result so that the UI tells cached from made."""
    rows, seconds = result.rows, result.elapsed_seconds
    if result.was_cached:
        return Completed(name="Cached", message=f"{rows} rows, already there", data=result)
    return Completed(message=f"{rows} rows in {seconds:.1f} s", data=result)


def report_all(results: Mapping[str, StageResult]) -> State[dict[str, StageResult]]:
    """Return the results of one piece of work that makes several artifacts."""
    n_cached = sum(result.was_cached for result in results.values())
    if n_cached == len(results):
        return Completed(name="Cached", message="all already there", data=dict(results))
    seconds = sum(result.elapsed_seconds for result in results.values())
    message = f"{len(results) - n_cached} of {len(results)} made in {seconds:.1f} s"
    return Completed(message=message, data=dict(results))


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    return isinstance(error, TRANSIENT_ERRORS) and not isinstance(error, PERMANENT_ERRORS)


async def _is_transient(_task: Any, _run: Any, state: State[Any]) -> bool:
    try:
        await state.result()
    except Exception as error:  # noqa: BLE001 - the state's own exception is what we ask about
        return is_transient(error)
    return False
