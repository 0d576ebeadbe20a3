"""An object store in memory that fails on purpose: `faulty://`.

Faults come before the work ("the request never arrived"), or after it ("the answer was lost"). A
plan says which request meets which fault; `storm` draws them at random from a seed.
"""

from __future__ import annotations

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

PASSING_FAULTS: dict[str, Callable[[], BaseException]] = {
    "timeout": lambda: TimeoutError("timed out"),
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "slow-down": lambda: OSError(errno.EBUSY, "Please reduce your request rate."),
    "internal-error": lambda: OSError(errno.EREMOTEIO, "We encountered an internal error."),
    "status-503": lambda: _make_client_error("ServiceUnavailable", 503),
    "status-500": lambda: _make_client_error("InternalError", 500),
    "read-timeout": lambda: ReadTimeoutError(endpoint_url="http://127.0.0.1"),
    "no-connection": lambda: EndpointConnectionError(endpoint_url="http://127.0.0.1"),
}

Decide = Callable[[str, str], tuple[str, BaseException] | None]
"""Given method and path: None, or ("before" or "after", what to raise)."""


class FaultyFileSystem(MemoryFileSystem):
    """A memory filesystem whose requests fail as the plan says."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    decide: ClassVar[Decide | None] = None
    requests: ClassVar[Counter[str]] = Counter()
    _lock: ClassVar[Any] = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, str) and path.startswith("faulty://"):
            path = "memory://" + path[len("faulty://") :]
        return super()._strip_protocol(path)

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path, with this protocol's name."""
        return "faulty:/" + self._strip_protocol(name)

    def _meet(self, method: str, path: str, work: Callable[[], Any]) -> Any:
        with self._lock:
            self.requests[method] += 1
            fault = self.decide(method, path) if type(self).decide is not None else None
        if fault is not None and fault[0] == "before":
            raise fault[1]
        result = work()
        if fault is not None:
            raise fault[1]
        return result

    def info(self, path: str, **kwargs: Any) -> Any:
        """Look at an object."""
        return self._meet("info", path, lambda: super(FaultyFileSystem, self).info(path, **kwargs))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read an object or a range of it."""
        return self._meet(
            "cat_file", path, lambda: MemoryFileSystem.cat_file(self, path, start, end)
        )

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Put bytes."""
        self._meet(
            "pipe_file", path, lambda: MemoryFileSystem.pipe_file(self, path, value, mode, **kwargs)
        )

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        """Put a local file."""
        with open(lpath, "rb") as handle:  # noqa: PTH123 - fsspec's own arguments are strings
            data = handle.read()
        self._meet("put_file", rpath, lambda: MemoryFileSystem.pipe_file(self, rpath, data))

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        """Copy an object into a local file."""

        def copy() -> None:
            with open(lpath, "wb") as handle:  # noqa: PTH123
                handle.write(MemoryFileSystem.cat_file(self, rpath))

        self._meet("get_file", rpath, copy)

    def rm_file(self, path: str) -> None:
        """Delete an object."""
        self._meet("rm_file", path, lambda: MemoryFileSystem._rm(self, path))

    def find(self, path: str, **kwargs: Any) -> Any:
        """List what is below a prefix."""
        return self._meet("find", path, lambda: MemoryFileSystem.find(self, path, **kwargs))


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@contextmanager
def faults(decide: Decide) -> Iterator[Counter[str]]:
    """Let requests fail as `decide` says; gives the requests made, by method."""
    FaultyFileSystem.decide = staticmethod(decide)  # type: ignore[assignment]
    FaultyFileSystem.requests.clear()
    try:
        yield FaultyFileSystem.requests
    finally:
        FaultyFileSystem.decide = None


def fail_first(
    n_times: int, make_fault: Callable[[], BaseException], when: str = "before"
) -> Decide:
    """The first requests fail, the later ones work."""
    left = [n_times]

    def decide(_method: str, _path: str) -> tuple[str, BaseException] | None:
        if left[0] == 0:
            return None
        left[0] -= 1
        return when, make_fault()

    return decide


def storm(seed: int, share: float) -> Decide:
    """A share of all requests fails with a passing fault, half of them after the work."""
    stream = random.Random(seed)

    def decide(_method: str, _path: str) -> tuple[str, BaseException] | None:
        if stream.random() >= share:
            return None
        name = stream.choice(sorted(PASSING_FAULTS))
        return stream.choice(["before", "after"]), PASSING_FAULTS[name]()

    return decide


def _make_client_error(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )
