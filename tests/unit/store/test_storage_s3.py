"""The store on a real S3-compatible server: what `storage.py` promises holds there."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eigenshift.base.errors import ArtifactError, SettingsError, StorageError
from eigenshift.ledger.releases import Release, list_releases, promote_patch, read_current
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.range_reader import RangeReader
from eigenshift.store.source_files import digest_file, list_files, open_file
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from tests.support.s3_server import READER_KEY, READER_SECRET, SECRET_KEY, S3Server

pytestmark = pytest.mark.s3

N_LARGE = 120 << 20
"""Above what one PUT takes: the upload has parts."""


def test_what_is_written_is_read_back(s3_store_url: str) -> None:
    """Put, replace, list, look, read, delete."""
    store = Store(s3_store_url)
    store.check_writable()
    store.write_bytes("runs/a.json", b"one")
    store.write_bytes("runs/a.json", b"two")
    store.write_bytes("runs/b.json", b"three")
    assert store.read_bytes("runs/a.json") == b"two"
    assert store.list_paths("runs") == ["runs/a.json", "runs/b.json"]
    state = store.list_states("runs")["runs/b.json"]
    assert state.n_bytes == len(b"three")
    assert state.modified_at is not None
    store.remove("runs/a.json")
    store.remove("runs/a.json")
    assert store.find_bytes("runs/a.json") is None
    assert store.inspect("runs/a.json") is None
    with pytest.raises(ArtifactError, match=r"runs/a\.json"):
        store.read_bytes("runs/a.json")


def test_a_large_file_is_uploaded_in_parts_and_seen_whole_or_not_at_all(
    s3_store_url: str, tmp_path: Path
) -> None:
    """While the parts arrive there is no object; afterwards every byte is there."""
    store = Store(s3_store_url)
    local = tmp_path / "large.bin"
    block = bytes(range(256)) * 4096
    local.write_bytes(block * (N_LARGE // len(block)))
    sha256 = digest_file(str(local))
    seen, done = set(), threading.Event()

    def watch() -> None:
        observer = Store(s3_store_url)
        while not done.is_set():
            seen.add(observer.measure_bytes("large.bin"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    store.publish_file(local, "large.bin")
    done.set()
    watcher.join()
    assert seen <= {None, N_LARGE}
    assert None in seen
    assert store.digest("large.bin") == sha256
    assert digest_file(str(store.fetch("large.bin", sha256))) == sha256


def test_an_unchanged_entity_tag_stands_for_an_unchanged_digest(s3_store_url: str) -> None:
    """The check of a cached artifact reads no data, and still sees a changed byte."""
    artifacts = ArtifactStore(s3_store_url)

    def work(workspace: Workspace) -> None:
        workspace.path("data.bin").write_bytes(b"x" * 100_000)

    made = artifacts.produce("values", step_version=1, settings={}, inputs=[], work=work)
    found = artifacts.produce("values", step_version=1, settings={}, inputs=[], work=work)
    assert found.was_cached
    assert found.traffic.bytes_read < 5_000  # the manifest, not the data
    assert found.traffic.requests == 2
    (file,) = artifacts.open(made.reference).manifest.files
    assert file.etag
    stored = f"{made.reference.folder}/{file.stored_as}"
    artifacts.store.write_bytes(stored, b"x" * 99_999 + b"y")
    assert artifacts.find(made.reference) is None
    assert not artifacts.produce(
        "values", step_version=1, settings={}, inputs=[], work=work
    ).was_cached


def test_releases_made_at_once_are_all_kept(s3_store_url: str) -> None:
    """Eight threads release at the same moment; the pointer names the newest."""
    barrier = threading.Barrier(8)

    def release(number: int) -> str:
        store = Store(s3_store_url)
        barrier.wait()
        patch = ArtifactReference(kind="patch", fingerprint=f"{number:040d}")
        return promote_patch(store, "org/model", f"run-{number}", patch, "test")[0].version

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(release, range(8)))
    store = Store(s3_store_url)
    history = list_releases(store, "org/model")
    assert {item.version for item in history} == set(versions)
    pointer = Release.model_validate_json(store.read_bytes("releases/org--model/current.json"))
    assert pointer == history[-1] == read_current(store, "org/model")


def test_sources_are_listed_and_read_by_glob(s3_store_url: str) -> None:
    """A growing prefix: files come sorted, with their sizes; bytes are as written."""
    store = Store(s3_store_url)
    for name in ("b.csv", "a.csv", "c.txt"):
        store.write_bytes(f"sources/{name}", name.encode() * 1000)
    files = list_files(f"{s3_store_url}/sources/*.csv")
    assert [file.uri.rpartition("/")[2] for file in files] == ["a.csv", "b.csv"]
    assert [file.n_bytes for file in files] == [5000, 5000]
    with open_file(files[0].uri) as handle:
        assert handle.read(7) == b"a.csva."
        assert len(handle.read()) == 4993


def test_ranges_are_read_in_place(s3_store_url: str) -> None:
    """Any range, from any thread, is what the object holds there."""
    store = Store(s3_store_url)
    data = bytes(index % 251 for index in range(1_000_000))
    store.write_bytes("data.bin", data)
    reader: RangeReader = store.reader("data.bin", len(data))

    def check(start: int) -> bool:
        return reader.read_range(start, start + 5000) == data[start : start + 5000]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(0, 1_000_000, 49_999)))


@pytest.mark.parametrize(
    ("key", "secret"), [("test:tester", "wrong-secret"), (READER_KEY, READER_SECRET)]
)
def test_wrong_or_insufficient_credentials_are_refused_without_naming_them(
    s3_store_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    key: str,
    secret: str,
) -> None:
    """A wrong key, and a user without rights to the bucket: one clear error, nothing repeated."""
    from s3fs import S3FileSystem

    logging.getLogger("eigenshift").propagate = True
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    S3FileSystem.clear_instance_cache()
    with caplog.at_level(logging.DEBUG, "eigenshift"), pytest.raises(SettingsError) as caught:
        Store(s3_store_url).check_writable()
    assert "Renew" in str(caught.value)
    assert "trying again" not in caplog.text
    assert secret not in str(caught.value) + caplog.text


@pytest.mark.usefixtures("s3_store_url")
def test_a_missing_bucket_is_named_before_any_work() -> None:
    """As a newcomer meets it: no traceback, the URL and what to do."""
    with pytest.raises(SettingsError, match=r"s3://no-such-bucket/.*make the bucket first"):
        Store("s3://no-such-bucket/store").check_writable()


def test_a_server_that_is_gone_is_said_to_be_gone(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again, then a clear error; the secret is not in it."""
    from eigenshift.store.filesystems import RetryPolicy

    for module in ("storage", "range_reader"):
        monkeypatch.setattr(f"eigenshift.store.{module}.RETRIES", RetryPolicy(3, 0.01, 0.02))
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    store = Store("s3://bucket/store?endpoint_url=http://127.0.0.1:9")
    with pytest.raises(StorageError, match="each of 3 attempts") as caught:
        store.write_bytes("a", b"x")
    assert SECRET_KEY not in str(caught.value)
