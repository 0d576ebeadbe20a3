"""This process's own folder on this machine: copies of remote objects, and what has to be a file.

It is removed when the process ends, also that of a pool's worker. What a killed process leaves
behind is removed by the next one that needs scratch space: each holds a lock inside its folder for
as long as it lives.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from functools import lru_cache
from multiprocessing import util
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "eigenshift-scratch-"
LOCK_NAME = ".in-use"
YOUNG_SECONDS = 3600.0
"""A lock without a holder may be one that another process is about to take."""
UNLOCKED_KEPT_SECONDS = 7 * 24 * 3600.0
"""Of a folder without a lock: its process was killed before it had one, or cannot have one here."""

_MAKING = threading.Lock()


def scratch_folder() -> Path:
    """This process's folder; the same whenever it is asked for, unless somebody removed it."""
    with _MAKING:
        folder = _make(os.getpid())
        if not folder.is_dir():
            _make.cache_clear()
            folder = _make(os.getpid())
        return folder


@lru_cache(maxsize=1)
def _make(_process_id: int) -> Path:
    """A new folder; a forked process does not go on with that of its parent."""
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = FileLock(folder / LOCK_NAME, thread_local=False)
    try:
        lock.acquire()
    except OSError:  # some network filesystems have no locks
        (folder / LOCK_NAME).unlink(missing_ok=True)
    # atexit alone is not asked in the workers of multiprocessing's pools
    util.Finalize(None, _remove, (folder, lock), exitpriority=0)
    return folder


def _remove(folder: Path, lock: FileLock) -> None:
    lock.release(force=True)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed, wherever we may."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # another process was faster, it is another user's, or somebody holds it
        with suppress(OSError, Timeout):
            age = time.time() - folder.stat().st_mtime
            if (folder / LOCK_NAME).exists():
                if age > YOUNG_SECONDS:
                    with FileLock(folder / LOCK_NAME, timeout=0):
                        shutil.rmtree(folder)
            elif age > UNLOCKED_KEPT_SECONDS:
                shutil.rmtree(folder)
