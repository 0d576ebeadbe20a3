"""Run a stage: find its artifact in the store, or do the work that makes it.

Reads manifests; writes artifacts. Retries and progress are `tasks/`'s.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Generic

from eigenshift.base.errors import ArtifactError
from eigenshift.stages.stage import I, K, Place, Stage
from eigenshift.store.artifacts import Order, StageResult
from eigenshift.store.workspace import Workspace


@dataclass(frozen=True)
class Piece(Generic[I, K]):
    """What one of several artifacts of one pass is made from.

    Attributes:
        inputs: What it reads.
        key: The settings it reads.
    """

    inputs: I
    key: K


def run_stage(stage: Stage[I, K], inputs: I, key: K, place: Place) -> StageResult:
    """The artifact of a stage, made only if it is not there.

    Args:
        stage: What to do.
        inputs: What it reads.
        key: The settings it reads.
        place: Where, and how fast.

    Raises:
        EigenShiftError: The work cannot be done, or writes what the stage does not declare.
    """
    bench = place.open()

    def work(workspace: Workspace) -> None:
        stage.load_work()(inputs, key, bench, workspace)
        _check_files(stage, workspace)

    result = bench.artifacts.produce(
        stage.kind,
        step_version=stage.version,
        settings=key.as_settings(),
        inputs=inputs.list_references(),
        work=work,
    )
    return _count_results(stage, result)


def run_stage_in_turn(
    stage: Stage[I, K], pieces: Sequence[Piece[I, K]], place: Place
) -> list[StageResult]:
    """The artifacts of some pieces of a stage's work, one after another, each whole by itself.

    Args:
        stage: What to do.
        pieces: What each artifact is made from.
        place: Where, and how fast.

    Raises:
        EigenShiftError: As `run_stage`; artifacts of the pieces before stay.
    """
    return [run_stage(stage, piece.inputs, piece.key, place) for piece in pieces]


def run_stage_together(
    stage: Stage[I, K], pieces: Mapping[str, Piece[I, K]], place: Place
) -> dict[str, StageResult]:
    """Several artifacts of a stage that are made in one pass, those that are not there.

    Args:
        stage: What to do.
        pieces: What each is made from, by name.
        place: Where, and how fast.

    Raises:
        EigenShiftError: As `run_stage`.
    """
    bench = place.open()

    def work(workspaces: Mapping[str, Workspace]) -> Generator[Sequence[str], None, None]:
        missing = {name: pieces[name] for name in workspaces}
        with closing(stage.load_work()(missing, bench, workspaces)) as pass_over:
            for names in pass_over:
                for name in names:
                    _check_files(stage, workspaces[name])
                yield names

    results = bench.artifacts.produce_together(
        stage.kind,
        step_version=stage.version,
        orders={
            name: Order(piece.key.as_settings(), piece.inputs.list_references())
            for name, piece in pieces.items()
        },
        work=work,
    )
    return {name: _count_results(stage, result) for name, result in results.items()}


def _count_results(stage: Stage[I, K], result: StageResult) -> StageResult:
    """The rows that people are told of are results: not those of the books beside them."""
    return replace(result, rows=stage.count_rows(result.files))


def _check_files(stage: Stage[I, K], workspace: Workspace) -> None:
    """What is written is what the stage declares: verification and readers rely on it."""
    unknown = [path.name for path in workspace.folder.iterdir() if not stage.declares(path.name)]
    if unknown:
        raise ArtifactError(
            f"{stage.name}: expected only files its stage declares, found {', '.join(unknown)}. A "
            "defect; please report it."
        )
