"""Names under which DuckDB reads a store's files, with whose they are written into the path.

    <somewhere>/run_id=<run>/<kind>/<fingerprint>/<file>.parquet

DuckDB takes such a key for a column and skips files by it before it opens any: a question about
one run of five hundred opens that run's files (docs/decisions/0025-audit-index.md). Of a local
store, the first folder is a link to the store's artifacts in this process's scratch folder; of a
remote one, and where nothing may be written, the names are what `duckdb_files.py` serves. One file
has as many names as runs used it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eigenshift.base.errors import ArtifactError, AuditError
from eigenshift.store.duckdb_files import PROTOCOL
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.storage import Store
from eigenshift.store.stored_file import StoredFile


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of a table, once per owner.

    Attributes:
        owner: The run that used it, or the artifact that holds it.
        kind: Of the artifact that holds it.
        fingerprint: Of the artifact that holds it.
        stored_as: Its name in the artifact's folder.
        n_bytes: Its size.
        sha256: Its digest.
        columns_digest: Of its columns; None where the manifest does not say.
    """

    owner: str
    kind: str
    fingerprint: str
    stored_as: str
    n_bytes: int
    sha256: str
    columns_digest: str | None

    @property
    def folder(self) -> str:
        """Of the artifact, relative to the store's `artifacts`."""
        return f"{self.kind}/{self.fingerprint}"


class FileNames:
    """Gives names to files of one store; remembers them for as long as it lives.

    Args:
        store: Where the files are.
        serves: `duckdb_files.py` serves them; else DuckDB opens them itself.
    """

    def __init__(self, store: Store, *, serves: bool) -> None:
        self._store = store
        self._serves = serves
        self._folder: Path | None = None
        self._links: dict[str, str] = {}

    def name_all(self, key: str, files: Sequence[TableFile]) -> dict[str, TableFile]:
        """Files by the names that `read_parquet` takes; local ones must be there.

        Args:
            key: Name of the column that says who the owner is.
            files: Of one table.

        Raises:
            ArtifactError: A file of a local store is missing.
        """
        if self._store.is_local:
            for file in files:
                self._check_there(file)
        name = self._name_served if self._serves else self._name_opened
        return {name(f"{key}={file.owner}", file): file for file in files}

    def locate(self, file: TableFile) -> StoredFile:
        """Where the file is."""
        path = f"artifacts/{file.folder}/{file.stored_as}"
        return StoredFile(self._store, path, file.n_bytes, file.sha256)

    def _check_there(self, file: TableFile) -> None:
        path = f"{self._store.local_path('artifacts')}/{file.folder}/{file.stored_as}"
        if not os.path.exists(path):  # noqa: PTH110 - thousands of files
            raise ArtifactError(
                f"{self._store.uri('artifacts')}/{file.folder}/{file.stored_as}: expected an "
                "object, found none. It was deleted. Start the same command again to make it."
            )

    def _name_served(self, owner: str, file: TableFile) -> str:
        return f"{PROTOCOL}://{owner}/{file.folder}/{file.stored_as}"

    def _name_opened(self, owner: str, file: TableFile) -> str:
        return f"{self._link(owner)}/{file.folder}/{file.stored_as}"

    def _link(self, owner: str) -> str:
        """A link to the store's artifacts, called after the owner."""
        if owner not in self._links:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="audit-", dir=scratch_folder()))
            link = self._folder / owner
            link.symlink_to(self._store.local_path("artifacts").absolute())
            self._links[owner] = str(link)
        return self._links[owner]


def find_file_in(message: str) -> str | None:
    """Where in the store a file is that an error of DuckDB speaks of, None if of none."""
    found = re.search(r"/(?:run_id|fingerprint)=[^/]*/(\w+/\w+/[^/'\"]+)", message)
    return None if found is None else f"artifacts/{found[1]}"


def describe_damage(root: str, error: BaseException) -> AuditError:
    """The error to raise where DuckDB could not open or read the files of a store."""
    damaged = find_file_in(str(error)) or str(error).strip().splitlines()[0]
    return AuditError(
        f"{root}: expected artifact files that open as Parquet, found: {damaged}. "
        "`eigenshift verify` names the damaged ones."
    )
