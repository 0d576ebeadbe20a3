"""What one query may use, and the clock that stops it."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import duckdb

from eigenshift.base.errors import AuditError

INTERRUPT_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class AuditLimits:
    """What one query may use.

    Attributes:
        seconds: After this the query is stopped.
        memory_limit: DuckDB's memory; it does not spill to disk.
        threads: DuckDB's threads.
        result_bytes: Largest result, as Arrow.
        requests: Most ranges read from a remote store.
    """

    seconds: float = 60.0
    memory_limit: str = "2GB"
    threads: int = max(1, min(4, os.cpu_count() or 1))
    result_bytes: int = 1 << 30
    requests: int = 50_000


class Deadline:
    """Interrupts a connection once its time is over, or at Ctrl-C."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = threading.Event()
        self._stopped = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether the time has passed and the query was interrupted."""
        return self._over.is_set()

    @property
    def is_stopped(self) -> bool:
        """Whether Ctrl-C was pressed and the query was interrupted."""
        return self._stopped.is_set()

    def describe(self) -> AuditError:
        """The error to raise."""
        return AuditError(
            f"audit query: expected an answer within {self._seconds:g} s, found none; it was "
            "stopped. Filter or aggregate earlier, and check the conditions of its joins."
        )

    @contextmanager
    def interrupting(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Watch over what runs inside.

        DuckDB looks for Ctrl-C between tasks; where it gives the thread that waits a long one, it
        would see it at the end.
        """
        pressed, end = socket.socketpair()

        def watch() -> None:
            ends_at = time.monotonic() + self._seconds
            with pressed:
                while not (self.is_stopped or self.is_over):
                    left = max(0.0, ends_at - time.monotonic())
                    if not select.select([pressed], [], [], left)[0]:
                        self._over.set()
                    elif not (signals := pressed.recv(4096)):
                        return  # what was watched over has ended
                    elif signal.SIGINT in signals:
                        self._stopped.set()
                is_ended = False
                while not is_ended:  # one interrupt may come between two steps and be lost
                    with suppress(duckdb.Error):  # closed meanwhile: nothing is left to stop
                        connection.interrupt()
                    is_readable, *_ = select.select([pressed], [], [], INTERRUPT_EVERY_SECONDS)
                    is_ended = bool(is_readable) and not pressed.recv(4096)

        watcher = threading.Thread(target=watch, name="audit-deadline", daemon=True)
        with ExitStack() as undo:
            undo.callback(_join, watcher)
            undo.enter_context(end)  # closed, it ends the watcher
            end.setblocking(False)
            watcher.start()
            if threading.current_thread() is threading.main_thread():  # Python allows no other
                undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(end.fileno()))
            yield


def _join(watcher: threading.Thread) -> None:
    """Wait for a watcher; one that Ctrl-C met before it had begun ends by itself."""
    with suppress(RuntimeError):
        watcher.join()
