"""Count what a stage asks of storage: requests, bytes, and requests tried again.

`storage.py` and `source_files.py` count into the meter of the task at hand; `artifacts.py` opens
one per task. Local files count like objects, so that a run on a laptop foretells what a bucket
would be asked for.
A client may need more HTTP requests than are counted here (parts of a large upload, redirects).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pydantic import BaseModel


class Traffic(BaseModel):
    """Requests made and bytes moved."""

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            requests=self.requests + other.requests,
            retries=self.retries + other.retries,
            bytes_read=self.bytes_read + other.bytes_read,
            bytes_written=self.bytes_written + other.bytes_written,
        )


class Meter:
    """Adds up traffic, from any thread."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._lock = threading.Lock()

    def count(self, *, read: int = 0, written: int = 0) -> None:
        """One request and the bytes it moved."""
        self._add(Traffic(requests=1, bytes_read=read, bytes_written=written))

    def count_retry(self, _fault: BaseException | None = None) -> None:
        """One request that has to be made again."""
        self._add(Traffic(requests=1, retries=1))

    def take(self) -> Traffic:
        """What came in since the last time it was asked for."""
        with self._lock:
            taken, self.traffic = self.traffic, Traffic()
        return taken

    def _add(self, traffic: Traffic) -> None:
        with self._lock:
            self.traffic = self.traffic + traffic


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
_NOBODYS = Meter()


def current_meter() -> Meter:
    """The meter of the task at hand. A reader used by other threads keeps the one it began with."""
    return _METER.get() or _NOBODYS


@contextmanager
def metering() -> Iterator[Meter]:
    """Count everything this task asks of storage until the block ends."""
    meter = Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
