"""What `eigenshift.stages.running` promises."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

from eigenshift.base.errors import ArtifactError
from eigenshift.datasets.stages import READ_FILE, ReadingInputs, ReadingKey, SourceContent
from eigenshift.settings import ExecutionSettings, ModelSettings, SourceFormat, SourceSettings
from eigenshift.stages import tables
from eigenshift.stages.inputs import Inputs
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.running import Piece, run_stage, run_stage_together
from eigenshift.stages.stage import Bench, Place, Stage
from eigenshift.store.workspace import Workspace

DONE: list[str] = []


class NumberKey(Key):
    """A number."""

    number: Annotated[int, Reads("number")]


def carry_out(inputs: Inputs, key: NumberKey, bench: Bench, workspace: Workspace) -> None:
    """Write the number; 13 into a file nobody declared."""
    DONE.append(str(key.number))
    name = "other.json" if key.number == 13 else "number.json"
    workspace.write_json(name, {"number": key.number})


def carry_out_together(
    pieces: Mapping[str, Piece[Inputs, NumberKey]],
    bench: Bench,
    workspaces: Mapping[str, Workspace],
) -> Generator[Sequence[str], None, None]:
    """Write each number."""
    for name, piece in pieces.items():
        carry_out(piece.inputs, piece.key, bench, workspaces[name])
        yield [name]


def make_stage(version: int = 1, work: str = "carry_out") -> Stage[Inputs, NumberKey]:
    """A stage that writes a number."""
    return Stage(
        name="write_number",
        kind="number",
        version=version,
        inputs=Inputs,
        key=NumberKey,
        files=("number.json", tables.SAMPLES),
        work=f"{__name__}:{work}",
    )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A store of its own."""
    DONE.clear()
    return Place(str(tmp_path / "store"), ModelSettings(id="none"), ExecutionSettings())


def test_work_is_done_once_per_key_and_version(place: Place) -> None:
    """The artifact is the cache."""
    runs = [(1, 7), (1, 7), (1, 8), (2, 7)]
    results = [
        run_stage(make_stage(version), Inputs(), NumberKey(number=number), place)
        for version, number in runs
    ]
    assert [result.was_cached for result in results] == [False, True, False, False]
    assert DONE == ["7", "8", "7"]


def test_only_the_missing_ones_of_a_pass_are_made(place: Place) -> None:
    """By name; each is an artifact of its own."""
    stage = make_stage(work="carry_out_together")
    pieces = {
        name: Piece(Inputs(), NumberKey(number=number)) for name, number in (("a", 1), ("b", 2))
    }
    run_stage_together(stage, {"a": pieces["a"]}, place)
    results = run_stage_together(stage, pieces, place)
    assert {name: item.was_cached for name, item in results.items()} == {"a": True, "b": False}
    assert DONE == ["1", "2"]


@pytest.mark.parametrize("is_together", [False, True])
def test_a_file_that_is_not_declared_is_never_published(place: Place, is_together: bool) -> None:
    """Verification and readers go by the declaration."""
    key = NumberKey(number=13)
    piece = {"a": Piece(Inputs(), key)}
    runs: dict[bool, Callable[[], Any]] = {
        False: lambda: run_stage(make_stage(), Inputs(), key, place),
        True: lambda: run_stage_together(make_stage(work="carry_out_together"), piece, place),
    }
    with pytest.raises(ArtifactError, match=r"write_number: .* found other\.json"):
        runs[is_together]()
    assert place.open().artifacts.list_manifests() == []


def test_shards_are_declared_by_their_pattern() -> None:
    """Names that only begin alike are not."""
    stage: Stage[Any, Any] = make_stage()
    assert stage.find_table("samples-00001.parquet") is tables.SAMPLES
    assert stage.declares("number.json")
    assert not stage.declares("samples.parquet")
    assert not stage.declares("other-samples-00001.parquet")


def test_rows_that_are_told_are_results_not_books(place: Place, tmp_path: Path) -> None:
    """Of a file of three rows, one of them empty, two are told, however many tables there are."""
    path = tmp_path / "neutral.csv"
    path.write_text('text\nThe garden is open.\n""\nThe lake was calm.\n')
    source = SourceSettings(name="neutral", format=SourceFormat.sentences, uri=str(path))
    inputs = ReadingInputs(content=SourceContent(source=source))
    key = ReadingKey(source=source, max_characters=100)
    made, found = (run_stage(READ_FILE, inputs, key, place) for _ in range(2))
    manifest = place.open().artifacts.open(made.reference).manifest
    assert (made.rows, found.rows) == (2, 2)
    assert manifest.facts["rows_read"] == made.rows + sum(manifest.facts["rejected"].values())
    assert manifest.rows == 4  # with the rejected row and the file's own line
