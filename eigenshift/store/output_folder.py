"""A folder that a command writes for its user, of an export or a model: whole or not at all.

It is written beside its place, under a name of its own, and renamed at the end. What a killed
process leaves there is removed by the next one that writes to the same place: each holds a lock
inside its folder for as long as it writes.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from eigenshift.base.errors import SettingsError

SUFFIX = ".partial"
LOCK_NAME = ".in-use"


@contextmanager
def writing_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `out` if all goes well, and is removed if not.

    Raises:
        SettingsError: `out` has content, or cannot be written (a full disk, permissions).
    """
    check_vacant(out)
    target = out.absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{SUFFIX}")
    lock = FileLock(partial / LOCK_NAME, thread_local=False)
    try:
        _remove_abandoned(target)
        partial.mkdir(parents=True)
        with suppress(OSError):  # some network filesystems have no locks
            lock.acquire()
        yield partial
        _unlock(lock)
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError as error:
        raise SettingsError(
            f"{out}: expected to write a folder, found: {error.strerror or error}. Check the path, "
            "its permissions and the free space."
        ) from error
    finally:
        _unlock(lock)
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left of this folder; one without a lock is left alone."""
    if not target.parent.is_dir():
        return
    for path in target.parent.iterdir():
        is_ours = path.name.startswith(f".{target.name}.") and path.name.endswith(SUFFIX)
        if not is_ours or not (path / LOCK_NAME).is_file():
            continue
        with suppress(Timeout, OSError), FileLock(path / LOCK_NAME, timeout=0):
            shutil.rmtree(path, ignore_errors=True)


def _unlock(lock: FileLock) -> None:
    """Give the lock up, and leave no trace of it in the folder."""
    lock.release(force=True)
    Path(lock.lock_file).unlink(missing_ok=True)


def check_vacant(out: Path) -> None:
    """Refuse a folder that is somebody's already; for those who have long work to do before.

    Raises:
        SettingsError: `out` has content, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(
            f"{out}: expected a new or empty folder, found one with content (or a file). Choose "
            "another --out."
        )


def check_space(folder: Path, n_bytes: int, remedy: str = "choose another --out") -> None:
    """Refuse before writing what will not fit.

    Args:
        folder: Where it would be written.
        n_bytes: How much.
        remedy: What to do, if not free some.

    Raises:
        SettingsError: There is less space.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise SettingsError(
            f"{folder.parent}: expected {n_bytes / 1e9:.1f} GB of free space, found "
            f"{free / 1e9:.1f} GB. Free some, or {remedy}."
        )
