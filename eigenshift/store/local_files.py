"""Files of this machine: digest, list, and put them in place so that no half of one is ever seen.

Knows nothing of stores and their errors: what goes wrong is an OSError for `storage.py` to explain.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

READ_BLOCK_BYTES = 4 << 20
REMEMBERED_DIGESTS = 200_000

_DIGESTS: dict[tuple[int, ...], str] = {}
"""Of files that were read whole, by what tells that they are the same."""
_READING: dict[tuple[int, ...], threading.Lock] = {}
"""Two tasks that need the digest of one file read it once."""


def digest_local_file(path: Path) -> str:
    """sha256 of a file of this machine, as hex; every byte is read."""
    with path.open("rb") as handle:
        # before it is read: a file that changes meanwhile is another one afterwards
        identity = _identify(os.fstat(handle.fileno()))
        digest = digest_stream(handle)
    if len(_DIGESTS) >= REMEMBERED_DIGESTS:
        _DIGESTS.clear()
    _DIGESTS[identity] = digest
    return digest


def recall_digest(path: Path) -> str:
    """sha256 of a file of this machine, as hex; read only if it has changed since it was last.

    What tells is its inode, size and time of last write, as for make or rsync.
    """
    identity = _identify(path.stat())
    with _READING.setdefault(identity, threading.Lock()):
        digest = _DIGESTS.get(identity) or digest_local_file(path)
    _READING.pop(identity, None)
    return digest


def mark_file(path: Path, sha256: str) -> str | None:
    """What tells other processes that a file still has this digest; None if it is not known here.

    Returns:
        Inode, size and time of last write.
    """
    with suppress(OSError):  # gone or refused this moment: the reader explains it
        status = path.stat()
        if _DIGESTS.get(_identify(status)) == sha256:
            return _show_mark(status)
    return None


def has_mark(path: Path, mark: str | None) -> bool:
    """Whether a file is the one that was marked, unchanged."""
    return mark is not None and _show_mark(path.stat()) == mark


def _show_mark(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _identify(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def digest_stream(handle: Any) -> str:
    """sha256 of what is left of an open file, as hex."""
    digest = hashlib.sha256()
    while block := handle.read(READ_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Paths and states of all files below a folder; unlike fsspec's, leaves no fault out.

    The folder may be a link; links below it are files themselves, so nothing leads out of it.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
                continue
            with suppress(FileNotFoundError):  # gone this moment
                yield entry.path, entry.stat(follow_symlinks=False)


def walk_named(folder: str, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """Paths and states of files called `name`; os.scandir, since there may be many thousands.

    The folder may be a link; those below it are not followed, since one may lead back.
    """
    path = f"{folder}/{name}"
    with suppress(FileNotFoundError, NotADirectoryError):
        yield path, os.stat(path)  # noqa: PTH116 - a Path for each would double the time
        return
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        folders = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        for inner in folders:
            yield from walk_named(inner, name)


def put_bytes(target: Path, data: bytes) -> None:
    """Write a file, replacing any older one in one step."""
    _replace(target, lambda beside: _write_synced(beside, data))


def put_file(local: Path, target: Path) -> None:
    """Move a file to its place, also from another disk, replacing any older one in one step."""
    _sync(local)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        local.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _replace(target, lambda beside: _copy_synced(local, beside))


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target, then rename over it; nothing is left behind if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        write(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _copy_synced(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    _sync(target)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _sync(path: Path) -> None:
    """Have the bytes on disk before a name says they are complete."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
