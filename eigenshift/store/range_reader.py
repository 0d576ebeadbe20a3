"""Part of an object at a time: a stream over ranges of a stored object."""

from __future__ import annotations

import io
import os
from typing import Any

from eigenshift.base.errors import ArtifactError
from eigenshift.store.filesystems import (
    RETRIES,
)
from eigenshift.store.traffic import current_meter


class RangeReader(io.RawIOBase):
    """A remote file read by ranges, each a request of its own that is tried again if it fails.

    Holds no connection, so nothing is lost when one breaks. Position and reads are as for any
    binary file; `read_range` needs no position and may be called from several threads.
    """

    def __init__(self, filesystem: Any, full_path: str, uri: str, n_bytes: int) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._full_path = full_path
        self._uri = uri
        self._position = 0
        self._meter = current_meter()
        self.size = n_bytes

    def read_range(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` (not included).

        Raises:
            ArtifactError: The object is gone, or shorter than it was.
            StorageError: It cannot be read.
        """
        end = min(end, self.size)
        if start >= end:
            return b""
        try:
            data = RETRIES.call(
                self._uri,
                "read",
                lambda: bytes(self._filesystem.cat_file(self._full_path, start=start, end=end)),
                seen=self._meter.count_retry,
            )
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self._uri}: expected an object, found none. It was deleted while it was read. "
                "Start the same command again."
            ) from error
        self._meter.count(read=len(data))
        if len(data) != end - start:
            raise ArtifactError(
                f"{self._uri}: expected bytes {start} to {end}, found {len(data)} of "
                f"{end - start}. The object was replaced or cut short while it was read. Start "
                "the same command again."
            )
        return data

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; costs nothing."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readall(self) -> bytes:
        """Return everything from the position on, in one request (io's own would make many)."""
        data = self.read_range(self._position, self.size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on."""
        data = self.read_range(self._position, self._position + len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
