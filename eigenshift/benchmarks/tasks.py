"""Which tasks a name or folder stands for, and what identifies them.

Reads task files in the harness's own YAML format, and digests what they name; puts no question. A
name without a slash is one that the harness knows; its questions come from a hub, so that it is
identified by name and version of the harness alone.

Of tasks in files, relative paths of data (`data_files`, `data_dir`) are relative to the task's
file; the harness itself takes them from the working folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from eigenshift.base.errors import SettingsError
from eigenshift.store.local_files import digest_local_file

PACKAGE = "lm_eval"
INSTALL = "pip install 'eigenshift[benchmark]'"
FILE_BUILDERS = ("csv", "json", "parquet", "text", "arrow")
"""Of `datasets`: those that read files one names. Other data sets are folders, or of a hub."""


@dataclass(frozen=True)
class FileTask:
    """A task in a file.

    Attributes:
        name: Of the task.
        path: Its file.
        files: Everything its questions depend on: the file, those it includes, its data, and Python
            files beside it.
        dataset_kwargs: Where its data is, absolute; empty where it names no files.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Reads task files without running the functions they name."""


def _read_function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(node.value)


_Loader.add_constructor("!function", _read_function)


def find_version() -> str:
    """Version of the harness.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise SettingsError(
            "benchmark.tasks: expected the package lm-eval (EleutherAI's lm-evaluation-harness), "
            f"found none. It is the extra `benchmark`: {INSTALL}."
        ) from error


def is_path(name: str) -> bool:
    """Whether a task is given by where it lies, not by the harness's name for it."""
    return "/" in name or name.endswith(".yaml")


def identify_task(name: str) -> str:
    """Digest of what decides a task's questions.

    Args:
        name: As in `benchmark.tasks`.

    Raises:
        SettingsError: The harness is not installed, or the files are not there.
    """
    digest = hashlib.sha256(f"{PACKAGE} {find_version()}\n".encode())
    if not is_path(name):
        digest.update(f"{name}\n".encode())
        return digest.hexdigest()
    for task in list_file_tasks(name):
        files = " ".join(digest_local_file(path) for path in task.files)
        digest.update(f"{task.name} {files}\n".encode())
    return digest.hexdigest()


def list_file_tasks(name: str) -> list[FileTask]:
    """The tasks of a folder, or of one file.

    Args:
        name: Folder or YAML file.

    Raises:
        SettingsError: There is none, a file is no YAML, or data it names is not there.
    """
    place = Path(name)
    paths = sorted(place.glob("**/*.yaml")) if place.is_dir() else [place]
    tasks = [task for path in paths if (task := _read_task(path)) is not None]
    if not tasks:
        raise SettingsError(
            f"{name}: expected YAML files of benchmark tasks (with `task: NAME`), found none. "
            "Check benchmark.tasks; a task of the harness is named without a slash."
        )
    return tasks


def _read_task(path: Path) -> FileTask | None:
    """A task's file with all it includes; None for files of groups and parts of others."""
    included: list[Path] = []
    config = _read_config(path, included)
    name = config.get("task")
    if not isinstance(name, str) or "group" in config:
        return None
    data, dataset_kwargs = _find_data(path, config)
    code = sorted(path.parent.glob("*.py"))
    return FileTask(name, path, (*included, *data, *code), dataset_kwargs)


def _read_config(path: Path, included: list[Path]) -> dict[str, Any]:
    """What a file says, over what it includes; files read are added to `included`."""
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError(
            f"{path}: expected a task file of the harness (YAML in UTF-8), found: {reason}. Check "
            "benchmark.tasks."
        ) from error
    included.append(path)
    if not isinstance(config, dict):
        raise SettingsError(
            f"{path}: expected a task file of the harness (a mapping), found "
            f"{type(config).__name__}. Check benchmark.tasks."
        )
    found = config.pop("include", [])
    merged: dict[str, Any] = {}
    for item in [found] if isinstance(found, str) else found:
        other = path.parent / item
        if other in included:
            raise SettingsError(f"{path}: expected files that end, found that it includes itself.")
        merged |= _read_config(other, included)
    return merged | config


def _find_data(path: Path, config: Mapping[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    """Files that hold a task's questions, and its `dataset_kwargs` with absolute paths."""
    kwargs = dict(config.get("dataset_kwargs") or {})
    if config.get("dataset_path") not in FILE_BUILDERS:
        return [], {}
    folder = path.parent.resolve()
    if "data_dir" in kwargs:
        folder = folder / kwargs.pop("data_dir")
    named = kwargs.get("data_files", [])
    by_split = named if isinstance(named, Mapping) else {"train": named}
    found = {split: list(_expand(path, folder, items)) for split, items in by_split.items()}
    kwargs["data_files"] = {split: [str(item) for item in items] for split, items in found.items()}
    return [item for items in found.values() for item in items], kwargs


def _expand(path: Path, folder: Path, named: str | Sequence[str]) -> Iterator[Path]:
    for item in [named] if isinstance(named, str) else named:
        place = folder / item
        found: Iterable[Path] = (
            [place] if place.is_file() else sorted(place.parent.glob(place.name))
        )
        if not found:
            raise SettingsError(
                f"{path}: expected the data file {item} that it names, found none in {folder}. Put "
                "it there, or correct dataset_kwargs.data_files."
            )
        yield from found


def require_tasks(names: Sequence[str]) -> None:
    """Stop before a run does its work if a task cannot be put at its end.

    Whether a hub has the questions is not asked.

    Raises:
        SettingsError: The harness is not installed, or there is no such task.
    """
    if not names:
        return
    find_version()
    for name in names:
        if is_path(name):
            list_file_tasks(name)
        elif name not in index_tasks().task_index:
            raise SettingsError(explain_unknown(name))


@lru_cache(maxsize=1)
def index_tasks() -> Any:
    """The harness's own tasks by name; it reads thousands of files to know them."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def explain_unknown(name: str) -> str:
    """What is said of a name that the harness has no task of."""
    return (
        f"benchmark.tasks: expected tasks that lm-eval {find_version()} knows, found {name!r}. "
        "`lm_eval ls tasks` lists them; a folder of task files is given with a slash, as ./folder."
    )
