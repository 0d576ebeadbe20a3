"""The tasks that run stages: retries, names in the UI, cached or made.

The store's manifests are the cache, so Prefect's own result cache is off: its records could
outlive the artifacts they stand for (docs/decisions/0002-cache-keys.md). A task that found its
artifact ends in a state named "Cached". What a stage is given is typed by its declaration: the
wrong inputs or key for a stage do not pass the type check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.tasks import Task, exponential_backoff

from eigenshift.base.errors import EigenShiftError
from eigenshift.pipeline import STAGES
from eigenshift.stages.running import (
    Piece,
    run_stage,
    run_stage_in_turn,
    run_stage_together,
)
from eigenshift.stages.stage import I, K, Place, Stage
from eigenshift.store.artifacts import StageResult

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

Single = PrefectFuture[StageResult]
Several = PrefectFuture[dict[str, StageResult]]
InTurn = PrefectFuture[list[StageResult]]
D = TypeVar("D")


def submit_stage(
    stage: Stage[I, K], inputs: I, key: K, place: Place, label: str | None = None
) -> Single:
    """Submit one piece of a stage's work to the run's task runner; call in a flow.

    Args:
        stage: What to do.
        inputs: What it reads.
        key: The settings it reads.
        place: Where it works.
        label: Which piece it is, for Prefect's screens; so in the next two.
    """
    future: Single = _name_run(_run, stage.name, label).submit(stage.name, inputs, key, place)
    return future


def submit_together(
    stage: Stage[I, K],
    pieces: Mapping[str, Piece[I, K]],
    place: Place,
    label: str | None = None,
) -> Several:
    """Submit work that makes several artifacts of a stage in one pass; call in a flow."""
    task = _name_run(_run_together, stage.name, label)
    future: Several = task.submit(stage.name, pieces, place)
    return future


def submit_in_turn(
    stage: Stage[I, K], pieces: Sequence[Piece[I, K]], place: Place, label: str | None = None
) -> InTurn:
    """Submit several pieces of a stage's work as one task; call in a flow."""
    task = _name_run(_run_in_turn, stage.name, label)
    future: InTurn = task.submit(stage.name, pieces, place)
    return future


def claims_gpu(task_name: str) -> bool:
    """Whether a task of this name runs a model, and so claims a GPU."""
    return any(stage.runs_model and show_name(stage.name) == task_name for stage in STAGES)


def show_name(stage_name: str) -> str:
    """A stage's name as Prefect's screens show it."""
    return stage_name.replace("_", "-")


async def _is_transient(_task: Any, _run: Any, state: State[Any]) -> bool:
    try:
        await state.result()
    except Exception as error:  # noqa: BLE001 - the state's own exception is what we ask about
        return is_transient(error)
    return False


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    return isinstance(error, TRANSIENT_ERRORS) and not isinstance(error, PERMANENT_ERRORS)


_make_task = task(
    cache_policy=NO_CACHE,
    persist_result=False,
    result_serializer="json",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(FIRST_DELAY_SECONDS),
    retry_jitter_factor=JITTER,
    retry_condition_fn=_is_transient,
)


@_make_task
def _run(stage_name: str, inputs: Any, key: Any, place: Place) -> State[StageResult]:
    """Any stage: its artifact, found or made."""
    return report(run_stage(_find_stage(stage_name), inputs, key, place))


@_make_task
def _run_together(
    stage_name: str, pieces: Mapping[str, Piece[Any, Any]], place: Place
) -> State[dict[str, StageResult]]:
    """Any stage that makes several artifacts in one pass: those found, and those made."""
    return report_all(run_stage_together(_find_stage(stage_name), pieces, place))


@_make_task
def _run_in_turn(
    stage_name: str, pieces: Sequence[Piece[Any, Any]], place: Place
) -> State[list[StageResult]]:
    """Any stage whose pieces are short: those found, and those made."""
    results = run_stage_in_turn(_find_stage(stage_name), pieces, place)
    return _report_several(results, results)


@cache
def _name_task(generic: Task[Any, Any], stage_name: str) -> Task[Any, Any]:
    return generic.with_options(name=show_name(stage_name))


def _name_run(generic: Task[Any, Any], stage_name: str, label: str | None) -> Task[Any, Any]:
    """The task of a stage, whose next run has a name of its own: `extract-activations 2 of 3`."""
    name = " ".join(filter(None, (show_name(stage_name), label)))
    escaped = name.replace("{", "{{").replace("}", "}}")  # Prefect formats it
    return _name_task(generic, stage_name).with_options(task_run_name=escaped)


def _find_stage(name: str) -> Stage[Any, Any]:
    return next(stage for stage in STAGES if stage.name == name)


def report(result: StageResult) -> State[StageResult]:
    """Return a stage's result so that the UI tells cached from made."""
    rows, seconds = result.rows, result.elapsed_seconds
    if result.was_cached:
        return Completed(name="Cached", message=f"{rows} rows, already there", data=result)
    return Completed(message=f"{rows} rows in {seconds:.1f} s", data=result)


def report_all(results: Mapping[str, StageResult]) -> State[dict[str, StageResult]]:
    """Return the results of one piece of work that makes several artifacts."""
    return _report_several(list(results.values()), dict(results))


def _report_several(results: Sequence[StageResult], data: D) -> State[D]:
    n_cached = sum(result.was_cached for result in results)
    if n_cached == len(results):
        return Completed(name="Cached", message="all already there", data=data)
    seconds = sum(result.elapsed_seconds for result in results)
    message = f"{len(results) - n_cached} of {len(results)} made in {seconds:.1f} s"
    return Completed(message=message, data=data)
