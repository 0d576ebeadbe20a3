"""The store: atomic puts on a local folder and in memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from eigenshift.errors import ArtifactError, SettingsError, StorageError
from eigenshift.source_files import digest_file
from eigenshift.storage import Store


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
    with pytest.raises(ArtifactError, match="sha256"):
        store.fetch("a", "0" * 64)


def test_a_failed_put_leaves_the_old_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local put is a rename: when writing fails, the old object stays and nothing is left."""
    store = Store(str(tmp_path))
    store.write_bytes("current.json", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eigenshift.storage.os.fsync", fail)
    with pytest.raises(StorageError, match="expected room to write"):
        store.write_bytes("current.json", b"new")
    assert store.read_bytes("current.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["current.json"]


def test_an_unwritable_store_is_refused_early(tmp_path: Path) -> None:
    """A store below a file cannot be written; the error says so before any work is done."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SettingsError, match="store"):
        Store(str(tmp_path / "file" / "store")).check_writable()


def test_an_unknown_scheme_names_the_remedy() -> None:
    """A URL no installed filesystem opens is a settings error."""
    with pytest.raises(SettingsError, match="install the extra"):
        Store("nosuchscheme://bucket/store")
