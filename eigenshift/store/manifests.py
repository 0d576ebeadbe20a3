"""Manifests: what an artifact holds and what it was made from, and the references between them.

    artifacts/<kind>/<fingerprint>/<attempt>-<file>
    artifacts/<kind>/<fingerprint>/manifest.json     present means complete

Reads and writes nothing; `artifacts.py` publishes artifacts and opens them. A fingerprint is the
name of a result before it is made (docs/decisions/0002-cache-keys.md).
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from eigenshift import __version__
from eigenshift.base.errors import ArtifactError
from eigenshift.store.traffic import Traffic

MANIFEST_NAME = "manifest.json"
RECORDED_PACKAGES = ("torch", "transformers", "pyarrow", "duckdb", "detoxify", "prefect", "numpy")


class ArtifactReference(BaseModel):
    """Names one artifact; what tasks pass to each other instead of data."""

    model_config = ConfigDict(frozen=True)
    kind: str
    fingerprint: str

    @property
    def folder(self) -> str:
        """Path of the artifact inside the store."""
        return f"artifacts/{self.kind}/{self.fingerprint}"


class FileReference(ArtifactReference):
    """Names one file of an artifact and where it lies, so it is read without the manifest.

    A stage that reads only it depends only on its content.
    """

    file: str
    stored_as: str
    bytes: int
    rows: int | None
    sha256: str
    mark: str | None = None
    """What tells that the file is the one the run found, without reading it: the store's entity
    tag, or of a local file inode, size and time of last write."""

    @property
    def path(self) -> str:
        """Where it is inside the store."""
        return f"{self.folder}/{self.stored_as}"

    @property
    def artifact(self) -> ArtifactReference:
        """The artifact it is a file of."""
        return ArtifactReference(kind=self.kind, fingerprint=self.fingerprint)


def choose_file(files: Sequence[FileReference], name: str) -> FileReference:
    """Return the file of this name among an artifact's.

    Raises:
        ArtifactError: It has none.
    """
    for file in files:
        if file.file == name:
            return file
    place = files[0].folder if files else "an artifact"
    raise ArtifactError(
        f"{place}: expected a file {name!r}, found {', '.join(file.file for file in files)}. The "
        "artifact was made by another version; raise the step version of the stage that writes it."
    )


OUTSIDE_KINDS = frozenset({"source", "weights", "classifier", "lexicon", "benchmark_task", "cases"})
"""Inputs that are digests of files outside the store; every `stages.inputs.Outside` is one."""


class InputRecord(BaseModel):
    """One input in a manifest. `identity` is what enters the fingerprint of the reader."""

    kind: str
    fingerprint: str
    file: str | None = None
    identity: str

    @property
    def is_outside(self) -> bool:
        """Whether it is no artifact of the store."""
        return self.kind in OUTSIDE_KINDS

    @classmethod
    def of(cls, reference: ArtifactReference) -> InputRecord:
        """An artifact stands for what made it, one file for its content."""
        names = {"kind": reference.kind, "fingerprint": reference.fingerprint}
        if isinstance(reference, FileReference):
            return cls(**names, file=reference.file, identity=reference.sha256)
        return cls(**names, identity=reference.fingerprint)


class FileRecord(BaseModel):
    """One file in a manifest."""

    name: str
    stored_as: str
    bytes: int
    rows: int | None
    sha256: str
    etag: str | None = None
    """The store's own mark of the object's content, where it has one: checks without reading."""
    columns_digest: str | None = None
    """Of a table's column names and types: tables that share it are read alike, unopened."""

    def find_difference(self, n_bytes: int, compute_sha256: Callable[[], str]) -> str | None:
        """What is wrong with the object that should be this file; None if it is this file.

        Args:
            n_bytes: The object's size.
            compute_sha256: Digests it; asked only if the size is right.
        """
        if n_bytes != self.bytes:
            return f"expected {self.bytes} bytes (manifest), found {n_bytes}."
        sha256 = compute_sha256()
        if sha256 != self.sha256:
            return f"expected sha256 {self.sha256[:12]} (manifest), found {sha256[:12]}."
        return None

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Records made before there were digests of columns keep their form, and so their seal."""
        document: dict[str, Any] = handler(self)
        if self.columns_digest is None:
            document.pop("columns_digest", None)
        return document


class Manifest(BaseModel):
    """What an artifact holds and what it was made from."""

    kind: str
    fingerprint: str
    step_version: int
    settings: dict[str, Any]
    inputs: list[InputRecord]
    files: list[FileRecord]
    facts: dict[str, Any]
    versions: dict[str, str]
    created_at: str
    elapsed_seconds: float
    traffic: Traffic = Traffic()
    seal: str = ""
    """sha256 of all the rest: one changed bit of a manifest shows."""

    def compute_seal(self) -> str:
        """Digest of everything but the seal."""
        return hashlib.sha256(self.model_dump_json(exclude={"seal"}).encode()).hexdigest()

    def encode(self) -> bytes:
        """The manifest as it is stored, sealed."""
        sealed = self.model_copy(update={"seal": self.compute_seal()})
        return sealed.model_dump_json(indent=2).encode()

    @property
    def rows(self) -> int:
        """Rows over all its tables."""
        return sum(file.rows or 0 for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes over all its files."""
        return sum(file.bytes for file in self.files)


def digest_columns(schema: pa.Schema) -> str:
    """Digest of a table's column names and types, in their order (16 hex digits)."""
    text = json.dumps([[field.name, str(field.type)] for field in schema])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compute_fingerprint(
    kind: str, step_version: int, settings: Mapping[str, Any], inputs: Sequence[InputRecord]
) -> str:
    """sha256 over kind, step version, settings read and identities of the inputs (40 hex digits).

    Keys are sorted and floats written as Python does, so equal settings give equal digests in
    every process.
    """
    document = [kind, step_version, settings, [[item.kind, item.identity] for item in inputs]]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@lru_cache(maxsize=1)
def describe_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that shape results."""
    versions = {"eigenshift": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
