"""Files anywhere, by path or URL: list, open, digest, copy here.

Reads what users name in their settings - sources, models, classifiers, lists of words - from any
fsspec URL. A store's own objects, below its root, are `storage.py`; what a file holds is the
readers' (`datasets/`). Writes only copies into this process's scratch folder.
"""

from __future__ import annotations

import glob
import io
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from eigenshift.base.errors import DatasetError
from eigenshift.base.locations import split_options
from eigenshift.store.filesystems import (
    RETRIES,
    explain_faults,
    is_local_filesystem,
    open_filesystem,
)
from eigenshift.store.local_files import READ_BLOCK_BYTES, digest_stream
from eigenshift.store.range_reader import RangeReader
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.storage import ObjectState
from eigenshift.store.traffic import current_meter
from eigenshift.store.unpacking import is_of_system, unpacking

DOCUMENTS = frozenset({"readme", "license", "licence", "citation", "changelog", "notice"})
"""Names, without endings, of what lies beside the data of a folder."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset, found by a path, URL or glob."""

    uri: str
    n_bytes: int


def list_files(uri: str) -> list[SourceFile]:
    """Expand a path, URL, glob or folder to files, in a stable order.

    Of a folder these are all files in it and below, but for those of the system and tools (`.x`,
    `_SUCCESS`) and for documents about the data (`DOCUMENTS`).

    Raises:
        DatasetError: Nothing matches.
        StorageError: The place cannot be listed.
    """
    filesystem, path = open_filesystem(uri)
    options = uri.removeprefix(split_options(uri)[0])

    def look() -> list[SourceFile]:
        filesystem.invalidate_cache()
        if glob.has_magic(path) and not filesystem.isfile(path):  # "a[1].csv" may be a name
            found = filesystem.glob(path, detail=True)
        elif not filesystem.exists(path):
            found = {}
        elif (info := filesystem.info(path))["type"] == "directory":
            found = _find_data(filesystem, path)
        else:
            found = {path: info}
        return [
            SourceFile(_display_uri(filesystem, item) + options, int(found[item]["size"] or 0))
            for item in sorted(found)
            if found[item]["type"] == "file"
        ]

    try:
        files = RETRIES.call(uri, "list", look, seen=current_meter().count_retry)
    except FileNotFoundError:
        files = []
    if not files:
        raise DatasetError(
            f"{uri}: expected at least one file, found none. Check the path or glob, and that the "
            "credentials in the environment may read it."
        )
    return files


def _find_data(filesystem: Any, folder: str) -> dict[str, Any]:
    below = filesystem.find(folder, detail=True)
    root = folder.rstrip("/")
    return {path: info for path, info in below.items() if _is_data(path.removeprefix(root))}


def _is_data(path: str) -> bool:
    *folders, name = PurePosixPath(path.lstrip("/")).parts
    is_document = name.partition(".")[0].lower() in DOCUMENTS
    return not is_document and not any(map(is_of_system, [*folders, name]))


@contextmanager
def open_file(uri: str) -> Iterator[IO[bytes]]:
    """Open any URL for reading bytes; what is compressed, whatever its name, is unpacked.

    Raises:
        FileNotFoundError: There is none.
        StorageError: It cannot be read.
        DatasetError: It is a zip file, but not of one file.
    """
    with open_named(uri) as (_, handle):
        yield handle


@contextmanager
def open_named(uri: str) -> Iterator[tuple[str, IO[bytes]]]:
    """As `open_file`, with the name of what is read: of a zip file that of the file in it.

    The stream has `peek`.
    """
    with _open_stored(uri) as stored, unpacking(stored, split_options(uri)[0]) as found:
        yield found


def digest_file(uri: str) -> str:
    """sha256 of a file's stored bytes (before any decompression), as hex."""
    with _open_stored(uri) as handle:
        return digest_stream(handle)


def fetch_path(uri: str) -> Path:
    """Return a local copy of a file or folder as it is now; local ones are returned as they are.

    A copy serves as long as the storage says that nothing has changed.
    """
    filesystem, path = open_filesystem(uri)
    if is_local_filesystem(filesystem):
        return Path(path)

    def look() -> str:
        filesystem.invalidate_cache()
        info = filesystem.info(path)
        is_folder = info["type"] == "directory"
        found = filesystem.find(path, detail=True) if is_folder else {path: info}
        marks = [(name, *_read_marks(found[name])) for name in sorted(found)]
        return digest_stream(io.BytesIO(repr(marks).encode()))

    return _fetch_state(uri, RETRIES.call(uri, "look at", look, seen=current_meter().count_retry))


def is_folder(uri: str) -> bool:
    """Whether a path or URL is a folder we can list."""
    filesystem, path = open_filesystem(uri)
    return bool(RETRIES.call(uri, "look at", lambda: filesystem.isdir(path)))


def has_protocol(uri: str) -> bool:
    """Whether this is a URL such as `s3://...` rather than a plain path or hub id."""
    return "://" in uri


def is_place(uri: str) -> bool:
    """Whether this is a path, glob or URL; anything else is the id of something on the hub."""
    looks_like_path = uri.startswith(("/", "./", "../", "~"))
    return looks_like_path or has_protocol(uri) or glob.has_magic(uri) or Path(uri).exists()


def _read_marks(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """What changes with a file, by its storage; a new value each time where that says nothing."""
    state, web = ObjectState.from_info(info), info.get("Last-Modified")
    is_marked = bool(state.etag or state.modified_at or web)
    return state, web if is_marked else uuid.uuid4().hex


@lru_cache(maxsize=32)
def _fetch_state(uri: str, _state: str) -> Path:
    """Copy a remote file or folder, once for each state it was seen in."""
    filesystem, path = open_filesystem(uri)

    def copy() -> Path:
        local = Path(tempfile.mkdtemp(dir=scratch_folder())) / PurePosixPath(path).name
        filesystem.get(path, str(local), recursive=filesystem.isdir(path))
        return local

    return RETRIES.call(uri, "read", copy, seen=current_meter().count_retry)


@contextmanager
def _open_stored(uri: str) -> Iterator[Any]:
    """Open a file as it is stored: a local one directly, a remote one by ranges."""
    filesystem, path = open_filesystem(uri)
    if is_local_filesystem(filesystem):
        with Path(path).open("rb") as local:
            yield local
        return
    info = RETRIES.call(
        uri, "look at", lambda: filesystem.info(path), seen=current_meter().count_retry
    )
    if info.get("size") is None:  # a web server that does not say: one stream, one attempt
        with explain_faults(uri, "read"), filesystem.open(path, "rb") as stream:
            yield io.BufferedReader(stream, READ_BLOCK_BYTES)
        return
    reader = RangeReader(filesystem, path, uri, int(info["size"]))
    with io.BufferedReader(reader, buffer_size=READ_BLOCK_BYTES) as buffered:
        yield buffered


def _display_uri(filesystem: Any, path: str) -> str:
    return path if is_local_filesystem(filesystem) else filesystem.unstrip_protocol(path)
