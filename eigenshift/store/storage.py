"""Objects of a store: read, list, publish atomically, digest.

Reads and writes any fsspec URL (a local folder, `s3://`, `gs://`, `az://`, `memory://`) through
`filesystems.py`, which tries passing faults again and explains the others. Knows nothing of
manifests or tables; those are `manifests.py` and `artifacts.py`. Files that users name, anywhere,
are `source_files.py`. Every request is counted (`traffic.py`).
"""

from __future__ import annotations

import posixpath
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from eigenshift.base.errors import ArtifactError, DamagedFileError, SettingsError, StorageError
from eigenshift.base.locations import split_options
from eigenshift.store.concurrency import ask_concurrently
from eigenshift.store.filesystems import (
    RETRIES,
    explain_faults,
    explain_full_disk,
    explain_local_write,
    is_local_filesystem,
    open_filesystem,
    read_whole,
)
from eigenshift.store.local_files import (
    digest_local_file,
    digest_stream,
    has_mark,
    mark_file,
    put_bytes,
    put_file,
    recall_digest,
    walk,
    walk_named,
)
from eigenshift.store.range_reader import RangeReader
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.traffic import current_meter

_COPY_LOCKS: dict[str, threading.Lock] = {}
"""By digest: two tasks that need one object fetch it once."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class ObjectState:
    """What a store says about an object without reading it.

    Attributes:
        n_bytes: Its size.
        etag: Its entity tag, which changes with its content; None where the store has none.
        modified_at: When it was put, in seconds since 1970; None where the store does not say.
    """

    n_bytes: int
    etag: str | None = None
    modified_at: float | None = None

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> ObjectState:
        """Read what a filesystem says, under the names each of them has for it."""
        etag = info.get("ETag") or info.get("etag")
        modified = next(
            (
                info[name]
                for name in ("LastModified", "mtime", "last_modified", "created")
                if info.get(name)
            ),
            None,
        )
        if isinstance(modified, datetime):
            modified = modified.timestamp()
        return cls(
            n_bytes=int(info["size"] or 0),
            etag=str(etag).strip('"') if etag else None,
            modified_at=modified if isinstance(modified, float) else None,
        )


class Store:
    """A root URL under which objects are addressed by relative paths.

    Puts are atomic: a reader sees the whole object or none. Locally that is a rename; on object
    stores it is what one PUT, or the completion of a multipart upload, does.

    Attributes:
        root: The URL, options included: opens the same store again.
        is_local: Whether objects are files of this machine.
    """

    def __init__(self, root: str) -> None:
        self._filesystem, path = open_filesystem(root)
        self.is_local = is_local_filesystem(self._filesystem)
        self._root = _normalise(path, root)
        given, _ = split_options(root)
        plain = self._filesystem.unstrip_protocol(self._root).rstrip("/")
        if "://" in given:  # a filesystem with several names answers with the first
            plain = given.partition("://")[0] + "://" + plain.partition("://")[2]
        self._base = plain
        self.root = plain + root.removeprefix(given)
        if self.is_local and Path(self._root).is_file():
            raise SettingsError(
                f"{self.root}: expected a folder for a store, found a file. Choose another --store."
            )

    def uri(self, path: str) -> str:
        """Return the full URL of an object."""
        return f"{self._base}/{path}"

    def exists(self, path: str) -> bool:
        """Whether an object is there now (listing caches are not trusted)."""
        return self.inspect(path) is not None

    def measure_bytes(self, path: str) -> int | None:
        """Size of an object in bytes, None if it is not there."""
        state = self.inspect(path)
        return None if state is None else state.n_bytes

    def inspect(self, path: str) -> ObjectState | None:
        """Size and entity tag of an object, None if it is not there."""

        def look() -> Any:
            self._filesystem.invalidate_cache()
            return self._filesystem.info(self._full(path))

        current_meter().count()
        try:
            info = self._ask(path, "look at", look)
        except FileNotFoundError:
            return None
        return None if info.get("type") == "directory" else ObjectState.from_info(info)

    def read_bytes(self, path: str) -> bytes:
        """Return an object's bytes.

        Raises:
            ArtifactError: There is no such object.
            StorageError: It cannot be read.
        """
        data = self.find_bytes(path)
        if data is None:
            raise self._describe_missing(path)
        return data

    def find_bytes(self, path: str) -> bytes | None:
        """Return a small object's bytes in one request, None if it is not there.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            data = self._ask(path, "read", lambda: read_whole(self._filesystem, self._full(path)))
        except FileNotFoundError:
            current_meter().count()
            return None
        current_meter().count(read=len(data))
        return data

    def reader(self, path: str, n_bytes: int) -> RangeReader:
        """Return a reader of an object's ranges, for other threads than this one as well."""
        return RangeReader(self._filesystem, self._full(path), self.uri(path), n_bytes)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Put an object in one step, replacing any older one.

        Raises:
            StorageError: It could not be written; an older object is still there.
        """
        full = self._full(path)
        if self.is_local:
            with explain_local_write(self.uri(path)):
                put_bytes(Path(full), data)
        else:
            self._put(path, partial(self._filesystem.pipe_file, full, data))
        current_meter().count(written=len(data))

    def publish_file(self, local: Path, path: str) -> None:
        """Move a finished local file into the store; `local` may be gone afterwards.

        Raises:
            StorageError: It could not be written.
        """
        full, n_bytes = self._full(path), local.stat().st_size
        if self.is_local:
            with explain_local_write(self.uri(path)):
                put_file(local, Path(full))
        else:
            self._put(path, partial(self._filesystem.put_file, str(local), full))
        current_meter().count(written=n_bytes)

    def remove(self, path: str) -> None:
        """Delete an object; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            self._ask(path, "delete", partial(self._filesystem.rm_file, self._full(path)))
        current_meter().count()

    def list_paths(self, prefix: str) -> list[str]:
        """All objects below a prefix, as sorted relative paths."""
        return sorted(self.list_states(prefix))

    def list_states(self, prefix: str) -> dict[str, ObjectState]:
        """All objects below a prefix with their states, by relative path.

        Raises:
            StorageError: Something below it cannot be listed; what is there is then unknown.
        """
        root = self._root.rstrip("/") + "/"
        if self.is_local:
            found = self._ask(prefix, "list", lambda: list(walk(self._full(prefix))))
            current_meter().count()
            return {
                path[len(root) :]: ObjectState(status.st_size, None, status.st_mtime)
                for path, status in found
                if not path.endswith(".partial")
            }

        def look() -> Any:
            self._filesystem.invalidate_cache()
            return self._filesystem.find(self._full(prefix), detail=True)

        try:
            infos = self._ask(prefix, "list", look)
        except FileNotFoundError:
            return {}
        current_meter().count()
        return {
            path[len(root) :]: ObjectState.from_info(info)
            for path, info in infos.items()
            if path.startswith(root)
        }

    def list_named(self, prefix: str, name: str) -> dict[str, ObjectState]:
        """Objects of one name in folders below a prefix, with their states, by relative path.

        A local folder that has one is not looked into any further, so its other files cost nothing.
        """
        if not self.is_local:
            states = self.list_states(prefix)
            return {path: states[path] for path in states if path.endswith(f"/{name}")}
        current_meter().count()
        root = Path(self._root)
        with explain_faults(self.uri(prefix), "list"):
            return {
                path[len(str(root)) + 1 :]: ObjectState(status.st_size, None, status.st_mtime)
                for path, status in walk_named(str(root / prefix), name)
            }

    def fetch(self, path: str, sha256: str, mark: str | None = None) -> Path:
        """Return a local file with the object's content.

        A local store's own file is returned if it has the mark it was found with; without one, or
        with another, it is digested, once by this process unless it changes. A remote object is
        copied into this process's scratch folder, under its digest: once, whoever asks, from
        whatever thread.

        Raises:
            ArtifactError: The object is missing.
            DamagedFileError: Its bytes do not have the given digest.
            StorageError: It cannot be read.
        """
        if self.is_local:
            local = Path(self._full(path))

            def ask() -> str:
                return sha256 if has_mark(local, mark) else recall_digest(local)

            try:
                found = self._ask(path, "read", ask)
            except FileNotFoundError as error:
                raise self._describe_missing(path) from error
            if found != sha256:
                raise self._describe_damage(path, f"sha256 {sha256[:12]}", found[:12])
            return local
        with _COPY_LOCKS.setdefault(sha256, threading.Lock()):
            return self.find_copy(sha256) or self._copy(path, sha256)

    @contextmanager
    def borrow(self, path: str) -> Iterator[Path]:
        """Hand out a file of this machine with an object's bytes, whatever they are, for a while.

        Raises:
            ArtifactError: There is no such object.
            StorageError: It cannot be read.
        """
        if self.is_local:
            local = Path(self._full(path))
            if not local.is_file():
                raise self._describe_missing(path)
            yield local
            return
        copy = scratch_folder() / f"{uuid.uuid4().hex}-{PurePosixPath(path).name}"
        try:
            self._download(path, copy)
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def find_copy(self, sha256: str) -> Path | None:
        """The copy of a remote object that this process has fetched already, None if it has not."""
        local = scratch_folder() / sha256
        return local if local.exists() else None

    def _copy(self, path: str, sha256: str) -> Path:
        local = scratch_folder() / sha256
        partial_copy = local.with_name(f"{local.name}.{uuid.uuid4().hex}.partial")
        try:
            self._download(path, partial_copy)
            found = digest_local_file(partial_copy)
            if found != sha256:
                raise self._describe_damage(path, f"sha256 {sha256[:12]}", found[:12])
            return partial_copy.replace(local)
        finally:
            partial_copy.unlink(missing_ok=True)

    def ask_all(self, ask: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """Return an answer for each item: at once where they are requests, else one by one."""
        if self.is_local:
            return [ask(item) for item in items]
        return ask_concurrently(ask, items)

    def digest(self, path: str, n_bytes: int | None = None) -> str:
        """sha256 of an object's bytes, as hex.

        Args:
            path: The object.
            n_bytes: Its size, if it is known already.

        Raises:
            ArtifactError: There is no such object.
        """
        n_bytes = self.measure_bytes(path) if n_bytes is None else n_bytes
        if n_bytes is None:
            raise self._describe_missing(path)
        if self.is_local:
            with explain_faults(self.uri(path), "read"):
                return digest_local_file(Path(self._full(path)))
        return digest_stream(self.reader(path, n_bytes))

    def make_workspace(self) -> Path:
        """Return a new empty local folder, on the store's own disk where the store is local."""
        if not self.is_local:
            return Path(tempfile.mkdtemp(dir=scratch_folder()))
        parent = Path(self._root) / "work"
        with explain_local_write(str(parent)):
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
            is_same = self.read_bytes(path) == b"probe"
            self.remove(path)
        except (StorageError, ArtifactError) as error:
            raise SettingsError(
                f"store {self.root}: expected to write and read an object. {error}"
            ) from error
        if not is_same:
            raise SettingsError(
                f"store {self.root}: expected to read back what was written, found something "
                "else. The storage is not consistent; choose another --store."
            )

    def local_path(self, path: str) -> Path:
        """Where an object of a local store lies."""
        if not self.is_local:
            raise ValueError(f"{self.root} is not a folder of this machine")
        return Path(self._full(path))

    def mark_local(self, path: str, sha256: str) -> str | None:
        """What tells later that a local object still has this digest (`local_files.mark_file`)."""
        return mark_file(self.local_path(path), sha256)

    def check_mark(self, path: str, n_bytes: int, sha256: str, etag: str | None) -> None:
        """Check that an object which is read by parts is the one that was found.

        Its entity tag says so at once; with another, as after a move of the store, its content.

        Raises:
            ArtifactError: It is missing.
            DamagedFileError: Its bytes do not have the given digest.
        """
        if etag is None:
            return
        state = self.inspect(path)
        if state is None:
            raise self._describe_missing(path)
        if state.etag == etag:
            return
        found = self.digest(path, n_bytes)
        if found != sha256:
            raise self._describe_damage(path, f"sha256 {sha256[:12]}", found[:12])

    def _download(self, path: str, local: Path) -> None:
        def get() -> None:
            with explain_full_disk(local.parent, in_scratch=True):
                self._filesystem.get_file(self._full(path), str(local))

        try:
            self._ask(path, "read", get)
        except FileNotFoundError as error:
            raise self._describe_missing(path) from error
        current_meter().count(read=local.stat().st_size)

    def _put(self, path: str, operation: Callable[[], Any]) -> None:
        """Write to an object store, where only the bucket can be missing."""
        try:
            self._ask(path, "write", operation)
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.uri(path)}: expected a bucket to write to, found none of this name. Check "
                "the URL of the store, or make the bucket first."
            ) from error

    def _ask(self, path: str, verb: str, operation: Callable[[], T]) -> T:
        """Make a request that may be tried again; the caller counts it when it worked."""
        return RETRIES.call(self.uri(path), verb, operation, seen=current_meter().count_retry)

    def _describe_missing(self, path: str) -> ArtifactError:
        return ArtifactError(
            f"{self.uri(path)}: expected an object, found none. It was deleted, or the run that "
            "writes it has not finished. Start the same command again to make it."
        )

    def _describe_damage(self, path: str, expected: str, found: str) -> DamagedFileError:
        return DamagedFileError(
            f"{self.uri(path)}: expected {expected}, found {found}. The object was damaged or "
            "replaced after it was written. Start the same refresh again; only this shard is "
            "redone. If it comes back, `eigenshift verify --repair` sets it aside.",
            path,
        )

    def _full(self, path: str) -> str:
        return str(PurePosixPath(self._root) / path)


def _normalise(path: str, root: str) -> str:
    """A root without `//` and `/./`, which paths joined to it lose, too.

    Raises:
        SettingsError: It has `..`, which is a name like others on an object store.
    """
    if "://" in root and ".." in path.split("/"):
        raise SettingsError(
            f"{root}: expected a URL without '..', found one. Write the path it stands for."
        )
    if not path.strip("/"):
        return path
    return ("/" if path.startswith("/") else "") + posixpath.normpath(path).lstrip("/")
