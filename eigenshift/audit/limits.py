"""What one query may use, and the clock that stops it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    """Interrupts a connection once its time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether the time has passed and the query was interrupted."""
        return self._over.is_set()

    def describe(self) -> AuditError:
        """The error to raise."""
        return AuditError(
            f"audit query: expected an answer within {self._seconds:g} s, found none; it was "
            "stopped. Filter or aggregate earlier, and check the conditions of its joins."
        )

    @contextmanager
    def interrupting(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Watch over what runs inside."""
        done = threading.Event()

        def watch() -> None:
            if done.wait(self._seconds):
                return
            self._over.set()
            while not done.is_set():  # one interrupt may come between two steps and be lost
                with suppress(duckdb.Error):  # closed meanwhile: there is nothing left to stop
                    connection.interrupt()
                done.wait(INTERRUPT_EVERY_SECONDS)

        watcher = threading.Thread(target=watch, name="audit-deadline", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
