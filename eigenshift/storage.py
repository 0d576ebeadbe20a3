"""The only user of fsspec: open, list, publish atomically, digest.

Reads and writes any fsspec URL (a local folder, `s3://`, `gs://`, `az://`, `memory://`). Knows
nothing of manifests or tables; those are `artifacts.py`. Credentials come from the environment in
each filesystem's usual way and are never written or logged.
"""

from __future__ import annotations

import atexit
import glob
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from eigenshift.errors import ArtifactError, DatasetError, SettingsError

READ_BLOCK_BYTES = 4 << 20


class Store:
    """A root URL under which objects are addressed by relative paths.

    Puts are atomic: a reader sees the whole object or none. Locally that is a rename; on object
    stores it is what one PUT does.
    """

    def __init__(self, root: str) -> None:
        self._filesystem, self._root = _resolve_url(root)
        self.root = self._filesystem.unstrip_protocol(self._root).rstrip("/")
        self.is_local = isinstance(self._filesystem, LocalFileSystem)

    def uri(self, path: str) -> str:
        """Return the full URL of an object."""
        return f"{self.root}/{path}"

    def exists(self, path: str) -> bool:
        """Whether an object is there now (listing caches are not trusted)."""
        return self.measure_bytes(path) is not None

    def measure_bytes(self, path: str) -> int | None:
        """Size of an object in bytes, None if it is not there."""
        self._filesystem.invalidate_cache()
        try:
            return int(self._filesystem.info(self._full(path))["size"])
        except FileNotFoundError:
            return None

    def read_bytes(self, path: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ArtifactError: There is no such object.
        """
        try:
            return bytes(self._filesystem.cat_file(self._full(path)))
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self.uri(path)}: expected an object, found none. It was deleted, or the run "
                "that writes it has not finished. Start the same command again to make it."
            ) from error

    def write_bytes(self, path: str, data: bytes) -> None:
        """Put an object in one step, replacing any older one."""
        full = self._full(path)
        if not self.is_local:
            self._filesystem.pipe_file(full, data)
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def publish_file(self, local: Path, path: str) -> None:
        """Move a finished local file into the store; `local` may be gone afterwards."""
        full = self._full(path)
        if not self.is_local:
            self._filesystem.put_file(str(local), full)
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            local.replace(target)
        except OSError:  # another filesystem: copy beside the target, then rename
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
            try:
                shutil.copyfile(local, partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def list_paths(self, prefix: str) -> list[str]:
        """All objects below a prefix, as sorted relative paths."""
        self._filesystem.invalidate_cache()
        try:
            found = self._filesystem.find(self._full(prefix))
        except FileNotFoundError:
            return []
        root = self._root.rstrip("/") + "/"
        return sorted(path[len(root) :] for path in found if not path.endswith(".partial"))

    def fetch(self, path: str, sha256: str) -> Path:
        """Return a local file with the object's content.

        A local store's own file is returned as it is; a remote object is copied once into this
        process's scratch folder, under its digest.

        Raises:
            ArtifactError: The object is missing, or its bytes do not have the given digest.
        """
        if self.is_local:
            local = Path(self._full(path))
            if not local.is_file():
                self.read_bytes(path)  # raises with the usual message
            return local
        local = scratch_folder() / sha256
        if not local.exists():
            partial = local.with_name(f"{local.name}.{uuid.uuid4().hex}.partial")
            data = self.read_bytes(path)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise ArtifactError(
                    f"{self.uri(path)}: expected sha256 {sha256[:12]}, found {found[:12]}. The "
                    "object was damaged after it was written. Start the same command again; only "
                    "this shard is redone."
                )
            partial.write_bytes(data)
            partial.replace(local)
        return local

    def digest(self, path: str) -> str:
        """sha256 of an object's bytes, as hex."""
        with self._filesystem.open(self._full(path), "rb") as handle:
            return _digest_stream(handle)

    def make_workspace(self) -> Path:
        """Return a new empty local folder, on the store's own disk where the store is local."""
        if not self.is_local:
            return Path(tempfile.mkdtemp(dir=scratch_folder()))
        parent = Path(self._root) / "work"
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))

    def check_writable(self) -> None:
        """Put, read and delete a small object.

        Raises:
            SettingsError: The store cannot be written or read back.
        """
        path = f"work/probe-{uuid.uuid4().hex}"
        try:
            self.write_bytes(path, b"probe")
            if self.read_bytes(path) != b"probe":
                raise OSError("the object read back differs")
            self._filesystem.rm_file(self._full(path))
        except (OSError, ArtifactError) as error:
            raise SettingsError(
                f"store {self.root}: expected to write and read an object, found: "
                f"{type(error).__name__}: {error}. Check the URL, the folder's permissions, or the "
                "credentials in the environment."
            ) from error

    def _full(self, path: str) -> str:
        return str(PurePosixPath(self._root) / path)


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset, found by a path, URL or glob."""

    uri: str
    n_bytes: int


def list_files(uri: str) -> list[SourceFile]:
    """Expand a path, URL or glob to files, in a stable order.

    Raises:
        DatasetError: Nothing matches.
    """
    filesystem, path = _resolve_url(uri)
    if glob.has_magic(path):
        found = sorted(filesystem.glob(path))
    else:
        found = [path] if filesystem.isfile(path) else []
    files = [
        SourceFile(_display_uri(filesystem, item), int(filesystem.info(item)["size"]))
        for item in found
        if filesystem.isfile(item)
    ]
    if not files:
        raise DatasetError(
            f"{uri}: expected at least one file, found none. Check the path or glob, and that the "
            "credentials in the environment may read it."
        )
    return files


@contextmanager
def open_file(uri: str) -> Iterator[IO[bytes]]:
    """Open any URL for reading bytes; gzip and friends are decompressed by suffix."""
    with fsspec.open(uri, "rb", compression="infer") as handle:
        yield handle


def digest_file(uri: str) -> str:
    """sha256 of a file's stored bytes (before any decompression), as hex."""
    with fsspec.open(uri, "rb") as handle:
        return _digest_stream(handle)


def is_folder(uri: str) -> bool:
    """Whether a path or URL is a folder we can list."""
    filesystem, path = _resolve_url(uri)
    return bool(filesystem.isdir(path))


def has_protocol(uri: str) -> bool:
    """Whether this is a URL such as `s3://...` rather than a plain path or hub id."""
    return "://" in uri


@lru_cache(maxsize=32)
def fetch_path(uri: str) -> Path:
    """Return a local copy of a file or folder; local ones are returned as they are."""
    filesystem, path = _resolve_url(uri)
    if isinstance(filesystem, LocalFileSystem):
        return Path(path)
    local = Path(tempfile.mkdtemp(dir=scratch_folder())) / PurePosixPath(path).name
    filesystem.get(path, str(local), recursive=filesystem.isdir(path))
    return local


@lru_cache(maxsize=1)
def scratch_folder() -> Path:
    """This process's folder for copies of remote objects; removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="eigenshift-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _resolve_url(url: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"{url}: expected a path or a URL that fsspec can open, found: {error}. For s3://, "
            "gs:// or az:// install the extra, e.g. pip install 'eigenshift[s3]'."
        ) from error
    return filesystem, path


def _display_uri(filesystem: Any, path: str) -> str:
    return path if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(path)


def _digest_stream(handle: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := handle.read(READ_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
