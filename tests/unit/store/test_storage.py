"""The store: atomic puts on a local folder and in memory."""

from __future__ import annotations

import errno
import re
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from eigenshift.base.errors import ArtifactError, SettingsError, StorageError
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.source_files import digest_file
from eigenshift.store.storage import Store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on each kind of filesystem."""
    root = tmp_path / "store" if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Store(str(root))


def test_what_is_written_is_read_back(store: Store) -> None:
    """Bytes survive a put and a get, and a second put replaces them."""
    store.write_bytes("runs/a.json", b"one")
    store.write_bytes("runs/a.json", b"two")
    assert store.read_bytes("runs/a.json") == b"two"
    assert store.measure_bytes("runs/a.json") == 3
    assert store.list_paths("runs") == ["runs/a.json"]


def test_missing_objects_are_told_apart_from_empty_ones(store: Store) -> None:
    """Absence is None or an error that names the object, never empty bytes."""
    assert store.measure_bytes("runs/none.json") is None
    assert store.list_paths("nowhere") == []
    with pytest.raises(ArtifactError, match=r"runs/none\.json"):
        store.read_bytes("runs/none.json")


def test_a_published_file_arrives_whole(store: Store, tmp_path: Path) -> None:
    """Publishing and fetching give the same content."""
    local = tmp_path / "table.bin"
    local.write_bytes(b"x" * 1000)
    digest = digest_file(str(local))
    store.publish_file(local, "artifacts/kind/f/table.bin")
    assert store.digest("artifacts/kind/f/table.bin") == digest
    assert store.fetch("artifacts/kind/f/table.bin", digest).read_bytes() == b"x" * 1000


def test_a_remote_object_of_another_digest_is_refused() -> None:
    """A damaged remote object is never handed to a stage."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.write_bytes("a", b"damaged")
    before = set(scratch_folder().iterdir())
    with pytest.raises(ArtifactError, match="sha256"):
        store.fetch("a", "0" * 64)
    assert set(scratch_folder().iterdir()) == before


def test_a_failed_put_leaves_the_old_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local put is a rename: when writing fails, the old object stays and nothing is left."""
    store = Store(str(tmp_path))
    store.write_bytes("current.json", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match="expected room to write"):
        store.write_bytes("current.json", b"new")
    assert store.read_bytes("current.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["current.json"]


def test_an_unwritable_store_is_refused_early(tmp_path: Path) -> None:
    """A store below a file cannot be written; the error says so before any work is done."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match="store"):
        Store(str(tmp_path / "file" / "store")).check_writable()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuchscheme://bucket/store", "found nosuchscheme://. Write a folder, or a URL"),
        ("zip::nosuchscheme://bucket", "found nosuchscheme://"),
        ("s3://", "expected the name of a bucket after s3://, found none. Write s3://BUCKET/F"),
        ("gs:///store", "Write gs://BUCKET/store"),
        ("abfs://", "expected the name of a container"),
    ],
)
def test_a_url_that_nobody_can_open_names_the_remedy(url: str, words: str) -> None:
    """A kind that is not known, or no bucket: said before any client is asked for credentials."""
    with pytest.raises(SettingsError, match=re.escape(words)) as refused:
        Store(url)
    assert "install" not in str(refused.value)


def test_a_client_that_is_not_installed_is_named_by_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that helps, and no other."""

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("no client")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    for url, extra in (("s3://bucket", "s3"), ("gs://bucket", "gcs"), ("az://bucket", "azure")):
        with pytest.raises(SettingsError, match=re.escape(f"'eigenshift[{extra}]'.")):
            Store(url)
    with pytest.raises(SettingsError, match="Install what the message names"):
        Store("sftp://host/folder")


@pytest.mark.parametrize("detour", ["a//b/store", "a/./b/store", "a/b//./store/"])
@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_a_roundabout_root_is_the_same_store(tmp_path: Path, scheme: str, detour: str) -> None:
    """What is written below it is listed below it, and below the plain root."""
    base = str(tmp_path) if scheme == "local" else f"memory://{uuid.uuid4().hex}"
    store, plain = Store(f"{base}/{detour}"), Store(f"{base}/a/b/store")
    store.write_bytes("runs/a.json", b"one")
    assert store.root == plain.root
    assert store.list_paths("runs") == plain.list_paths("runs") == ["runs/a.json"]
    assert list(store.list_named("runs", "a.json")) == ["runs/a.json"]


def test_a_url_that_goes_up_is_refused(tmp_path: Path) -> None:
    """On an object store `..` is a name like others; in a local path it is followed."""
    with pytest.raises(SettingsError, match=r"without '\.\.'"):
        Store("memory://bucket/a/../b")
    assert Store(f"{tmp_path}/a/../b").root == Store(f"{tmp_path}/b").root


def test_a_scratch_folder_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the store, which has nothing to do with it, and is not to be cleared for it."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.write_bytes("a", b"content")

    def get_file(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    with pytest.raises(StorageError, match=rf"{scratch_folder()}: .*TMPDIR"):
        store.fetch("a", "0" * 64)
