"""Hugging Face datasets -> samples, by the column mapping in the settings.

Takes a dataset id (with configuration, revision and split), or a folder, file, glob or URL of
Parquet, JSON or CSV files, or a folder written by `save_to_disk`. Everything is loaded by the
`datasets` library's own builders: dataset scripts are refused (the library has not run any since
4.0, and nothing here asks it to). Credentials and cache folders are that library's own settings.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub import errors as hub_errors

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.column_mapping import list_required_columns, make_column_mapper
from eigenshift.datasets.records import (
    Item,
    Record,
    Rejection,
    SourceInput,
    check_columns,
    map_records,
)
from eigenshift.datasets.sentences import find_suffix
from eigenshift.datasets.tables import BATCH_ROWS, list_records
from eigenshift.settings import SourceSettings
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.source_files import (
    SourceFile,
    digest_file,
    fetch_path,
    has_protocol,
    is_folder,
    list_files,
)

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT_SECONDS = 10.0
BUILDERS = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
}
SAVED_TO_DISK = ("dataset_dict.json", "state.json")
# What the hub client raises when it cannot connect is no OSError, and which class it is depends
# on its HTTP library; the client's errors module re-exports it.
HTTP_ERROR: type[Exception] = getattr(hub_errors, "HTTPError", hub_errors.HfHubHTTPError)
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, HTTP_ERROR)
LOAD_ERRORS: tuple[type[Exception], ...] = (*HUB_ERRORS, RuntimeError, KeyError)


def digest_dataset(source: SourceSettings) -> str:
    """Identity of what would be read, without reading it.

    For local or remote files their digests; for a hub dataset its id, configuration, split and the
    commit the revision stands for, if the hub answers.
    """
    if _is_stored(source.uri):
        return _digest_files(_list_stored_files(source), source)
    return _digest_hub_dataset(source, resolve_commit(source))


def find_dataset(source: SourceSettings) -> SourceInput:
    """Load one split, ready to be read.

    Raises:
        DatasetError: There is no such dataset, configuration or split, it cannot be built without
            running its code, or it lacks a mapped column.
    """
    if _is_stored(source.uri):
        files = _list_stored_files(source)
        dataset = _load(source, partial(_load_stored, source, files))
        uri = f"{source.uri}#{source.split}"
        digest = _digest_files(files, source)
        n_bytes = sum(file.n_bytes for file in files)
    else:
        commit = resolve_commit(source)
        dataset = _load(source, partial(_load_from_hub, source, commit or source.revision))
        uri = _describe_hub_dataset(source, commit)
        digest = _digest_hub_dataset(source, commit)
        n_bytes = int(dataset.data.nbytes)
    check_columns(uri, list(dataset.column_names), list_required_columns(source))
    return SourceInput(uri, digest, n_bytes, partial(_read_dataset, dataset, source))


def resolve_commit(source: SourceSettings) -> str | None:
    """The commit a revision stands for; None if the hub does not answer."""
    if source.revision is not None and COMMIT.fullmatch(source.revision):
        return source.revision
    try:
        info = HfApi().dataset_info(
            source.uri, revision=source.revision, timeout=HUB_TIMEOUT_SECONDS
        )
    except HUB_ERRORS as error:
        logger.warning(
            "hub did not resolve a dataset: dataset=%s error=%s", source.uri, type(error).__name__
        )
        return None
    return None if info.sha is None else str(info.sha)


def _is_stored(uri: str) -> bool:
    """Whether this is a path, glob or URL; anything else is the id of a dataset on the hub."""
    looks_like_path = uri.startswith(("/", "./", "../", "~"))
    return looks_like_path or has_protocol(uri) or glob.has_magic(uri) or Path(uri).exists()


def _list_stored_files(source: SourceSettings) -> list[SourceFile]:
    if is_folder(source.uri):
        return list_files(f"{source.uri.rstrip('/')}/**")
    return list_files(source.uri)


def _digest_files(files: list[SourceFile], source: SourceSettings) -> str:
    digests = [[file.uri, digest_file(file.uri)] for file in files]
    return _digest_document([digests, source.configuration, source.split])


def _digest_hub_dataset(source: SourceSettings, commit: str | None) -> str:
    return _digest_document(
        [source.uri, source.configuration, source.revision, source.split, commit]
    )


def _digest_document(document: list[Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def _describe_hub_dataset(source: SourceSettings, commit: str | None) -> str:
    revision = commit or source.revision or "unresolved"
    parts = [f"hf://datasets/{source.uri}@{revision}", source.configuration, source.split]
    return "/".join(part for part in parts if part)


def _load(source: SourceSettings, load: partial[Any]) -> Any:
    """Load a dataset, naming what went wrong without repeating what was in it."""
    import datasets  # slow to import, and only this format needs it

    datasets.disable_progress_bars()
    # its builders log the errors of their parsers, which may quote a cell
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    place = f"{source.uri} (split {source.split})"
    remedy = (
        "Check `uri`, `configuration`, `revision` and `split`, and the network if it is on a hub."
    )
    try:
        return load(datasets)
    except (datasets.exceptions.DatasetBuildError, pa.ArrowException) as error:
        raise DatasetError(
            f"{place}: expected files that can be read as a table, found ones that cannot "
            f"({type(error).__name__}). They are damaged, or differ in their columns. Read one of "
            "them by itself to find which."
        ) from None  # the builder's error may carry a row
    except LOAD_ERRORS as error:
        raise DatasetError(
            f"{place}: expected a dataset, found: {type(error).__name__}: {error}. {remedy}"
        ) from error


def _load_stored(source: SourceSettings, files: list[SourceFile], datasets: Any) -> Any:
    # A cache of our own: the library's would serve an older file of the same name and size.
    cache = tempfile.mkdtemp(dir=scratch_folder())
    if is_folder(source.uri):
        folder = fetch_path(source.uri)
        if any((folder / name).exists() for name in SAVED_TO_DISK):
            saved = datasets.load_from_disk(str(folder))
            return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(
            str(folder), name=source.configuration, split=source.split, cache_dir=cache
        )
    builders = {BUILDERS.get(find_suffix(file.uri)) for file in files}
    builder = builders.pop()
    if builder is None or builders:
        raise ValueError("files of one kind are needed: .parquet, .json, .jsonl or .csv")
    paths = [str(fetch_path(file.uri)) for file in files]
    return datasets.load_dataset(
        builder, data_files={source.split: paths}, split=source.split, cache_dir=cache
    )


def _load_from_hub(source: SourceSettings, revision: str | None, datasets: Any) -> Any:
    return datasets.load_dataset(
        source.uri, name=source.configuration, revision=revision, split=source.split
    )


def _read_dataset(dataset: Any, source: SourceSettings) -> Iterator[Item]:
    return map_records(_list_records(dataset), make_column_mapper(source))


def _list_records(dataset: Any) -> Iterator[Record | Rejection]:
    """Read as Arrow: images and audio in other columns are not decoded."""
    number = 1
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from list_records(table, number)
        number += table.num_rows
