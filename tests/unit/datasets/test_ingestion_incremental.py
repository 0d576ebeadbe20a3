"""A source that grows: what was read stays as it was, and history leaves no trace."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS_PER_SHARD = 10
FILES = {
    f"part-{number}.csv": [f"{number} text {row}" for row in range(25)] for number in (2, 4, 6)
}


def write_files(folder: Path, files: Mapping[str, list[str]]) -> str:
    """Write one CSV per entry and return their glob."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in files.items():
        rows = "".join(f"{text},0\n" for text in texts)
        (folder / name).write_text(f"comment_text,toxic\n{rows}")
    return str(folder / "*.csv")


def list_shards(ingest, folder: Path, files: Mapping[str, list[str]]) -> list[str]:
    """Digests of the shards of a folder with exactly these files."""
    for old in folder.glob("*.csv"):
        old.unlink()
    options = {"rows_per_shard": ROWS_PER_SHARD}
    outcome = ingest(format="jigsaw", uri=write_files(folder, files), ingestion=options)
    return [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(outcome.folder.glob("samples-*.parquet"))
    ]


@pytest.mark.parametrize("name", ["part-1.csv", "part-3.csv", "part-9.csv"])
def test_a_new_file_leaves_the_shards_of_the_others(ingest, tmp_path: Path, name: str) -> None:
    """Wherever it sorts, only its own shards are new: three of 25 rows."""
    before = list_shards(ingest, tmp_path, FILES)
    after = list_shards(ingest, tmp_path, {**FILES, name: [f"new {row}" for row in range(25)]})
    assert len(before) == 9
    assert [digest for digest in after if digest in before] == before
    assert len(after) == 12


def test_appended_rows_redo_the_last_shard_of_their_file(ingest, tmp_path: Path) -> None:
    """Full shards stay; the partly filled one is filled up."""
    before = list_shards(ingest, tmp_path, FILES)
    longer = [*FILES["part-4.csv"], *(f"more {row}" for row in range(12))]
    after = list_shards(ingest, tmp_path, {**FILES, "part-4.csv": longer})
    assert set(before) - set(after) == {before[5]}
    assert len(set(after) - set(before)) == 2


def test_a_removed_file_leaves_the_shards_of_the_others(ingest, tmp_path: Path) -> None:
    """What it held goes; nothing else moves."""
    before = list_shards(ingest, tmp_path, FILES)
    after = list_shards(
        ingest, tmp_path, {name: FILES[name] for name in ("part-2.csv", "part-6.csv")}
    )
    assert after == before[:3] + before[6:]


def test_a_text_that_comes_earlier_now_moves_one_shard(ingest, tmp_path: Path) -> None:
    """A new first file that holds a later file's text takes it over: two files' shards change."""
    before = list_shards(ingest, tmp_path, FILES)
    after = list_shards(ingest, tmp_path, {"part-1.csv": ["6 text 24", "other"], **FILES})
    assert set(before) - set(after) == {before[8]}


@settings(max_examples=25, deadline=None)
@given(
    contents=st.lists(
        st.lists(st.integers(0, 30), min_size=1, max_size=25), min_size=1, max_size=4
    ),
    order=st.randoms(use_true_random=False),
)
def test_samples_do_not_depend_on_history(
    ingest, tmp_path_factory: pytest.TempPathFactory, contents: list[list[int]], order
) -> None:
    """Files arriving in any order end in the samples of a source that had them all at once."""
    folder = tmp_path_factory.mktemp("history")
    files = {
        f"{place}.csv": [f"text {number}" for number in numbers]
        for place, numbers in enumerate(contents)
    }
    arriving = list(files)
    order.shuffle(arriving)
    present: dict[str, list[str]] = {}
    found: list[str] = []
    for name in arriving:
        present[name] = files[name]
        found = list_shards(ingest, folder, present)
    assert found == list_shards(ingest, folder, files)


def test_a_name_with_brackets_is_a_name(ingest, tmp_path: Path) -> None:
    """Characters of a glob in a file's own name do not hide it."""
    write_files(tmp_path, {"part[1].csv": ["tea", "jam"]})
    outcome = ingest(format="jigsaw", uri=str(tmp_path / "*.csv"))
    assert outcome.texts == ["tea", "jam"]
