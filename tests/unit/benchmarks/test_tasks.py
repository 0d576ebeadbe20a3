"""Tasks in files: found, identified by all their questions depend on, explained where absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.benchmarks import tasks
from eigenshift.benchmarks.tasks import identify_task, is_path, list_file_tasks, require_tasks
from tests.support.benchmark_tasks import ENDINGS, EVERYDAY, write_task


def append(text: str) -> Callable[[Path], None]:
    """Add text to the end of a file."""
    return lambda path: path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("piqa", False), ("mmlu_anatomy", False), ("./folder", True), ("/a/b.yaml", True)],
)
def test_a_slash_tells_files_from_names(name: str, expected: bool) -> None:
    """No look at the disk: a name means the same wherever the command is started."""
    assert is_path(name) is expected


def test_a_folder_stands_for_all_its_tasks(tmp_path: Path) -> None:
    """Also for those below it; parts of others and groups are none."""
    write_task(tmp_path, "one")
    write_task(tmp_path / "below", "two")
    (tmp_path / "part.yaml").write_text("output_type: multiple_choice\n")
    (tmp_path / "group.yaml").write_text("group: both\ntask: [one, two]\n")
    assert [task.name for task in list_file_tasks(str(tmp_path))] == ["two", "one"]
    assert [task.name for task in list_file_tasks(str(tmp_path / "one.yaml"))] == ["one"]


def test_data_is_where_the_file_says_from_its_own_place(tmp_path: Path) -> None:
    """The harness alone would look in the working folder."""
    write_task(tmp_path / "data", "all")
    path = write_task(
        tmp_path / "tasks",
        dataset_kwargs={"data_dir": "../data", "data_files": {"test": ["all.csv"]}},
    )
    (task,) = list_file_tasks(str(path))
    (file,) = task.dataset_kwargs["data_files"]["test"]
    assert Path(file).samefile(tmp_path / "data" / "all.csv")
    assert Path(file).is_absolute()
    assert "data_dir" not in task.dataset_kwargs


def test_several_files_by_a_pattern(tmp_path: Path) -> None:
    """In the order of their names; a file without splits is one split."""
    for name in ("b", "a"):
        write_task(tmp_path / "data", name)
    path = write_task(tmp_path, dataset_kwargs={"data_files": "data/*.csv"})
    (task,) = list_file_tasks(str(path))
    found = task.dataset_kwargs["data_files"]["train"]
    assert [Path(file).name for file in found] == ["a.csv", "b.csv"]


def test_the_identity_is_that_of_all_that_decides_the_questions(tmp_path: Path) -> None:
    """File, what it includes, data and code beside it; not the place, nor other files."""
    folder = tmp_path / "tasks"
    write_task(folder, include="shared.inc")
    (folder / "shared.inc").write_text("repeats: 1\n")
    (folder / "code.py").write_text("ONE = 1\n")
    (folder / "notes.md").write_text("Notes.\n")
    before = identify_task(str(folder))
    assert identify_task(shutil.copytree(folder, tmp_path / "moved").as_posix()) == before
    append("More.\n")(folder / "notes.md")
    assert identify_task(str(folder)) == before
    for name in ("small.yaml", "small.csv", "shared.inc", "code.py"):
        append("\n")(folder / name)
        after = identify_task(str(folder))
        assert after != before, name
        before = after


def test_the_harness_version_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may put another prompt."""
    before = [identify_task("piqa"), identify_task(str(EVERYDAY))]
    monkeypatch.setattr(metadata, "version", lambda _: "0.0.1")
    after = [identify_task("piqa"), identify_task(str(EVERYDAY))]
    assert len({*before, *after}) == 4


def test_without_the_harness_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed unless asked for."""
    monkeypatch.setattr(tasks, "PACKAGE", "no-such-package")
    with pytest.raises(SettingsError, match=r"pip install 'eigenshift\[benchmark\]'"):
        identify_task("piqa")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset_kwargs": {"data_files": "none.csv"}}, "expected the data file none.csv"),
        ({"include": "small.yaml"}, "it includes itself"),
        ({"include": "none.yaml"}, "No such file"),
        ({"task": ["one", "two"]}, "expected YAML files of benchmark tasks"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    """Each error has the file's place."""
    path = write_task(tmp_path, **changes)
    with pytest.raises(SettingsError, match=expected) as caught:
        list_file_tasks(str(path))
    assert str(tmp_path) in str(caught.value)


def test_a_folder_without_tasks_is_explained(tmp_path: Path) -> None:
    """Also one that is not there, and a file that is no mapping."""
    with pytest.raises(SettingsError, match="found none"):
        list_file_tasks(str(tmp_path))
    with pytest.raises(SettingsError, match="No such file"):
        list_file_tasks(str(tmp_path / "none"))
    (tmp_path / "list.yaml").write_text("- one\n")
    with pytest.raises(SettingsError, match="a mapping"):
        list_file_tasks(str(tmp_path))


@pytest.mark.parametrize("folder", [EVERYDAY, ENDINGS], ids=["everyday", "endings"])
def test_what_is_shipped_is_whole(folder: Path) -> None:
    """Each question once, two different answers, and neither place the better guess."""
    import csv

    (task,) = list_file_tasks(str(folder))
    assert task.name == folder.name
    (file,) = task.dataset_kwargs["data_files"]["validation"]
    with Path(file).open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) >= 60
    assert len({row["goal"] + row["sol1"] for row in rows}) == len(rows)
    assert all(row["sol1"] != row["sol2"] for row in rows)
    share = sum(int(row["label"]) for row in rows) / len(rows)
    assert 0.4 <= share <= 0.6


def test_tasks_are_looked_for_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name the harness does not know is told at once, as is a folder that is not there."""
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=str(EVERYDAY), include_defaults=False)
    monkeypatch.setattr(tasks, "index_tasks", lambda: known)
    require_tasks([])
    require_tasks(["everyday", str(ENDINGS)])
    with pytest.raises(SettingsError, match="found 'evryday'"):
        require_tasks(["evryday"])
    with pytest.raises(SettingsError, match="No such file"):
        require_tasks([str(tmp_path / "none")])


@pytest.mark.slow
def test_the_default_task_is_known_to_the_harness() -> None:
    """The index of its thousands of tasks is read once in a process."""
    from flows.benchmarking import DEFAULT_TASK

    require_tasks([DEFAULT_TASK, "mmlu", str(EVERYDAY)])
    with pytest.raises(SettingsError, match="found 'no_such_task'"):
        require_tasks(["no_such_task"])
