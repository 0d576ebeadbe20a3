"""A file of an artifact where it lies, for those who read it whole or in parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eigenshift.store.range_reader import RangeReader
from eigenshift.store.storage import Store


@dataclass(frozen=True)
class StoredFile:
    """One immutable object, known by size and digest, for those who read it in place.

    Attributes:
        store: Where it is.
        path: Relative to the store's root.
        n_bytes: Its size.
        sha256: Its digest.
        mark: What tells that it is unchanged (`FileReference.mark`).
    """

    store: Store
    path: str
    n_bytes: int
    sha256: str
    mark: str | None = None

    @property
    def uri(self) -> str:
        """Full URL."""
        return self.store.uri(self.path)

    def fetch(self) -> Path:
        """Return a local file with its content (`Store.fetch`)."""
        return self.store.fetch(self.path, self.sha256, self.mark)

    def find_near(self) -> Path | None:
        """A file of this machine with its content, without any request; None if there is none.

        Raises:
            ArtifactError: It is missing from a local store.
        """
        return self.fetch() if self.store.is_local else self.store.find_copy(self.sha256)

    def check_mark(self) -> None:
        """Check that it was not replaced (`Store.check_mark`)."""
        self.store.check_mark(self.path, self.n_bytes, self.sha256, self.mark)

    def reader(self) -> RangeReader:
        """Return a reader of its ranges (`Store.reader`)."""
        return self.store.reader(self.path, self.n_bytes)
