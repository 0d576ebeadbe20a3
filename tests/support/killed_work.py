"""Work in a process of its own that is killed (SIGKILL) at a chosen moment.

Processes come from a server that has imported everything already, so that dozens of kills take
seconds. A moment is either a time, or the n-th time the process touches storage: before or after
a request, or in the middle of writing a local file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SECONDS_TO_WAIT = 300


def prepare(modules: Sequence[str]) -> Any:
    """Return a context whose processes start with these modules imported."""
    context = multiprocessing.get_context("forkserver")
    # The first table that pyarrow makes imports pandas, which is longer than most of the work.
    context.set_forkserver_preload([*modules, "pandas"])
    return context


def start(context: Any, work: Callable[..., None], arguments: Sequence[Any]) -> Any:
    """Start a process with this process's environment (not that of the server it comes from)."""
    process = context.Process(target=_enter, args=(dict(os.environ), work, tuple(arguments)))
    process.start()
    return process


def run_until(
    context: Any, work: Callable[..., None], arguments: Sequence[Any], seconds: float
) -> bool:
    """Run a process, kill it after some seconds, and return whether it had finished by then."""
    process = start(context, work, arguments)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join(SECONDS_TO_WAIT)
        return False
    return bool(process.exitcode == 0)


def run_to_moment(
    context: Any, work: Callable[..., None], arguments: Sequence[Any], moment: int
) -> bool:
    """Run a process that dies at its n-th touch of storage; return whether it lived to the end."""
    process = start(context, _work_and_die, [work, tuple(arguments), moment])
    process.join(SECONDS_TO_WAIT)
    if process.exitcode not in (0, -signal.SIGKILL):
        raise AssertionError(f"expected an end or a kill, found exit code {process.exitcode}")
    return bool(process.exitcode == 0)


def _enter(
    environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    work(*arguments)


def _work_and_die(work: Callable[..., None], arguments: tuple[Any, ...], moment: int) -> None:
    touch = _Countdown(moment).touch
    _wrap(Path, "replace", touch)
    _wrap(Path, "mkdir", touch)
    _wrap(os, "fsync", touch)
    for name in ("pipe_file", "put_file", "get_file", "cat_file", "info", "find", "rm_file"):
        for filesystem in _list_remote_filesystems():
            _wrap(filesystem, name, touch)
    from eigenshift.store import local_files

    local_files._write_synced = partial(_write_in_halves, touch)
    work(*arguments)


class _Countdown:
    def __init__(self, moment: int) -> None:
        self._left = moment

    def touch(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(SECONDS_TO_WAIT)  # the signal may arrive a moment later


def _wrap(owner: Any, name: str, touch: Callable[[], None]) -> None:
    inner = getattr(owner, name)

    def outer(*arguments: Any, **keywords: Any) -> Any:
        touch()
        result = inner(*arguments, **keywords)
        touch()
        return result

    setattr(owner, name, outer)


def _list_remote_filesystems() -> list[Any]:
    try:
        from s3fs import S3FileSystem
    except ImportError:
        return []
    return [S3FileSystem]


def _write_in_halves(touch: Callable[[], None], path: Path, data: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(data[: len(data) // 2])
        handle.flush()
        touch()
        handle.write(data[len(data) // 2 :])
        handle.flush()
        os.fsync(handle.fileno())
