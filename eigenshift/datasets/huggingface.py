"""Hugging Face datasets -> samples, by the column mapping in the settings.

Takes a dataset id (with configuration, revision and split), or a folder, file, glob or URL of
Parquet, JSON or CSV files, or a folder written by `save_to_disk`. What is in an id or a folder the
`datasets` library finds: dataset scripts are refused (the library has not run any since 4.0, and
nothing here asks it to). Credentials and cache folders are that library's own settings. Files, and
CSV and JSON wherever they are, are read by `containers.py`: the library reads CSV by pandas, which
takes texts such as "None" and "NA" for nothing and ids such as 0001 for numbers, and JSON by
pyarrow, which makes dates of texts that look like some (docs/protections.md). A file that is
damaged in one row stops the run, as it does in the library.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub import errors as hub_errors

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.column_mapping import list_required_columns, make_column_mapper
from eigenshift.datasets.containers import Container
from eigenshift.datasets.records import (
    SAVED_TO_DISK,
    Item,
    Reason,
    Record,
    Rejection,
    SourceInput,
    check_columns,
    map_records,
)
from eigenshift.datasets.sentences import read_mapped
from eigenshift.datasets.tables import BATCH_ROWS, list_records
from eigenshift.settings import SourceSettings
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.source_files import (
    SourceFile,
    digest_file,
    fetch_path,
    is_folder,
    is_place,
    list_files,
    open_named,
)

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_TIMEOUT_SECONDS = 10.0
TEXT_BUILDERS = frozenset({"csv", "json"})
DAMAGE = frozenset({Reason.bad_json})
# What the hub client raises when it cannot connect is no OSError, and which class it is depends
# on its HTTP library; the client's errors module re-exports it.
HTTP_ERROR: type[Exception] = getattr(hub_errors, "HTTPError", hub_errors.HfHubHTTPError)
HUB_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, HTTP_ERROR)
LOAD_ERRORS: tuple[type[Exception], ...] = (*HUB_ERRORS, RuntimeError, KeyError)


@dataclass(frozen=True)
class TextFiles:
    """CSV or JSON files of a split, which the library would read otherwise than they are meant.

    Attributes:
        uris: In reading order.
        class_names: Of numbered classes, by column, where the dataset names them.
    """

    uris: tuple[str, ...]
    class_names: dict[str, list[str]]


def digest_dataset(source: SourceSettings) -> str:
    """Identity of what would be read, without reading it.

    For local or remote files their digests; for a hub dataset its id, configuration, split and the
    commit the revision stands for, if the hub answers.
    """
    if is_place(source.uri):
        return _digest_files(_list_stored_files(source), source)
    return _digest_hub_dataset(source, resolve_commit(source))


def find_dataset(source: SourceSettings) -> SourceInput:
    """Load one split, ready to be read.

    Raises:
        DatasetError: There is no such dataset, configuration or split, it cannot be built without
            running its code, or it lacks a mapped column.
    """
    if is_place(source.uri):
        files = _list_stored_files(source)
        uri = f"{source.uri}#{source.split}"
        digest = _digest_files(files, source)
        n_bytes = sum(file.n_bytes for file in files)
        dataset = (
            _load(source, partial(_load_folder, source))
            if is_folder(source.uri)
            else TextFiles(tuple(file.uri for file in files), {})
        )
    else:
        commit = resolve_commit(source)
        dataset = _load(source, partial(_load_from_hub, source, commit or source.revision))
        uri = _describe_hub_dataset(source, commit)
        digest = _digest_hub_dataset(source, commit)
        n_bytes = 0 if isinstance(dataset, TextFiles) else int(dataset.data.nbytes)
    if isinstance(dataset, TextFiles):
        return SourceInput(uri, digest, n_bytes, partial(_read_files, dataset, source))
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


def _load_folder(source: SourceSettings, datasets: Any) -> Any:
    # A cache of our own: the library's would serve an older file of the same name and size.
    cache = tempfile.mkdtemp(dir=scratch_folder())
    folder = fetch_path(source.uri)
    if any((folder / name).exists() for name in SAVED_TO_DISK):
        saved = datasets.load_from_disk(str(folder))
        return saved[source.split] if isinstance(saved, datasets.DatasetDict) else saved
    options = {"name": source.configuration, "cache_dir": cache}
    builder = datasets.load_dataset_builder(str(folder), **options)
    files = _find_text_files(builder, source.split)
    return files or datasets.load_dataset(str(folder), split=source.split, **options)


def _load_from_hub(source: SourceSettings, revision: str | None, datasets: Any) -> Any:
    dataset = datasets.load_dataset(
        source.uri, name=source.configuration, revision=revision, split=source.split
    )
    if dataset.info.builder_name not in TEXT_BUILDERS:
        return dataset
    builder = datasets.load_dataset_builder(
        source.uri, name=source.configuration, revision=revision
    )
    return _find_text_files(builder, source.split) or dataset


def _find_text_files(builder: Any, split: str) -> TextFiles | None:
    """The CSV or JSON files of a split; None where they are others, or in a way of their own.

    Raises:
        DatasetError: A part of a split is asked for, which only the library could cut.
    """
    config = builder.config
    is_plain = (
        type(config).__name__ in ("CsvConfig", "JsonConfig")
        and getattr(config, "field", None) is None
        and getattr(config, "column_names", None) is None
        and getattr(config, "names", None) is None
    )
    if is_plain and "[" in split:
        raise DatasetError(
            f"split {split}: expected the name of a split, found a part of one. Its files are CSV "
            "or JSON, of which the library would lose texts. Name the split, and set the source's "
            "`max_rows` to read only so many rows."
        )
    files = (config.data_files or {}).get(split) if is_plain else None
    if files is None:
        return None
    return TextFiles(tuple(map(str, files)), _list_class_names(builder.info.features))


def _list_class_names(features: Any) -> dict[str, list[str]]:
    return {
        name: list(map(str, feature.names))
        for name, feature in (features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }


def _read_files(files: TextFiles, source: SourceSettings) -> Iterator[Item]:
    """Read files one after another as one.

    Raises:
        DatasetError: One is damaged.
    """
    number = 0
    for uri in files.uris:
        with open_named(uri) as (name, handle):
            container = Container(uri, name, handle, files.class_names)
            for item in read_mapped(container, source):
                number += 1
                if isinstance(item, Rejection) and item.reason in DAMAGE:
                    raise DatasetError(
                        f"{uri}: expected a file that can be read as a table, found row "
                        f"{item.source_row} that cannot ({item.reason.value}: {item.detail}). It "
                        "is damaged. Fetch it again, or set the source's `format` to 'sentences', "
                        "which rejects such rows one by one."
                    )
                yield replace(item, source_row=number)


def _read_dataset(dataset: Any, source: SourceSettings) -> Iterator[Item]:
    mapper = make_column_mapper(source, _list_class_names(dataset.features))
    return map_records(_list_records(dataset), mapper)


def _list_records(dataset: Any) -> Iterator[Record | Rejection]:
    """Read as Arrow: images and audio in other columns are not decoded."""
    number = 1
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from list_records(table, number)
        number += table.num_rows
