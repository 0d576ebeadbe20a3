"""A complete artifact, opened for reading through its manifest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.store.manifests import (
    ArtifactReference,
    FileReference,
    Manifest,
    choose_file,
)
from eigenshift.store.storage import Store
from eigenshift.store.stored_file import StoredFile


class Artifact:
    """A complete artifact, opened for reading."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self.manifest = manifest

    @property
    def reference(self) -> ArtifactReference:
        """The reference other stages pass around."""
        return ArtifactReference(kind=self.manifest.kind, fingerprint=self.manifest.fingerprint)

    @cached_property
    def files(self) -> tuple[FileReference, ...]:
        """References to its files, in the order written."""
        return tuple(
            FileReference(
                **self.reference.model_dump(),
                file=record.name,
                mark=record.etag,
                **record.model_dump(include={"stored_as", "bytes", "rows", "sha256"}),
            )
            for record in self.manifest.files
        )

    def mark_files(self) -> tuple[FileReference, ...]:
        """`files`, those of a local store marked; they were read whole a moment ago."""
        if not self._store.is_local:
            return self.files
        return tuple(
            file.model_copy(update={"mark": self._store.mark_local(file.path, file.sha256)})
            for file in self.files
        )

    @property
    def file_names(self) -> list[str]:
        """Names of its files, in the order written."""
        return [file.file for file in self.files]

    def refer_to_file(self, name: str) -> FileReference:
        """Reference to one of its files."""
        return choose_file(self.files, name)

    def refer_to_files(self, prefix: str) -> list[FileReference]:
        """References to its files whose names begin with `prefix`."""
        return [file for file in self.files if file.file.startswith(prefix)]

    def fetch(self, name: str) -> Path:
        """Return a local path with the file's content."""
        return self.locate(name).fetch()

    def locate(self, name: str) -> StoredFile:
        """Return where a file is, for those who read only parts of it."""
        return locate_file(self._store, self.refer_to_file(name))

    def read_table(self, name: str) -> pa.Table:
        """Read one Parquet file whole."""
        return pq.read_table(self.fetch(name))

    def read_tables(self, prefix: str) -> pa.Table:
        """Read the Parquet files whose names begin with `prefix`, one after the other."""
        return read_files(self._store, self.refer_to_files(prefix))


def locate_file(store: Store, file: FileReference) -> StoredFile:
    """Return where a file is; nothing is asked of storage."""
    return StoredFile(store, file.path, file.bytes, file.sha256, file.mark)


def read_files(store: Store, files: Iterable[FileReference]) -> pa.Table:
    """Read Parquet files, one after the other."""
    paths = store.ask_all(lambda file: locate_file(store, file).fetch(), files)
    return pa.concat_tables(map(pq.read_table, paths))
