"""Storage that fails on purpose: tried again where that helps, explained where it does not."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from eigenshift.base.errors import ArtifactError, StorageError
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.filesystems import RetryPolicy
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.source_files import digest_file, list_files, open_file
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep.verification import verify_store
from tests.support.faulty_filesystem import PASSING_FAULTS, fail_first, faults, storm

MADE_UP_KEY = "wJalrXUtnFEMI-not-a-real-key"
ATTEMPTS = 4
TABLE = pa.schema([pa.field("value", pa.int64())])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    policy = RetryPolicy(ATTEMPTS, first_wait_seconds=0.0001, max_wait_seconds=0.001)
    for module in ("storage", "range_reader", "source_files"):
        monkeypatch.setattr(f"eigenshift.store.{module}.RETRIES", policy)


@pytest.fixture
def url() -> str:
    """A store of its own in faulty memory."""
    return f"faulty://{uuid.uuid4().hex}"


def use_store(store: Store, tmp_path: Path) -> None:
    """Every operation once, with what it must give."""
    store.write_bytes("a/small.json", b"small")
    local = tmp_path / "large.bin"
    content = uuid.uuid4().hex.encode() * 200  # never seen before, so nothing is in scratch yet
    local.write_bytes(content)
    sha256 = digest_file(str(local))
    store.publish_file(local, "a/large.bin")
    assert store.read_bytes("a/small.json") == b"small"
    assert store.fetch("a/large.bin", sha256).read_bytes() == content
    assert store.digest("a/large.bin") == sha256
    assert store.measure_bytes("a/large.bin") == len(content)
    assert store.list_paths("a") == ["a/large.bin", "a/small.json"]
    store.remove("a/small.json")
    assert not store.exists("a/small.json")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", sorted(PASSING_FAULTS))
def test_a_passing_fault_of_every_operation_is_tried_again(
    url: str, tmp_path: Path, fault: str, when: str
) -> None:
    """Each request fails once, before or after its work; every result is as without faults."""
    met: set[tuple[str, str]] = set()

    def decide(method: str, path: str) -> tuple[str, BaseException] | None:
        if (method, path) in met:
            return None
        met.add((method, path))
        return when, PASSING_FAULTS[fault]()

    # A deletion whose answer was lost finds nothing the second time: that is no error.
    with faults(decide):
        use_store(Store(url), tmp_path)
    assert {method for method, _ in met} >= {"pipe_file", "put_file", "cat_file", "get_file"}


def test_a_fault_tried_again_is_logged_without_its_message(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names object, action, attempt and kind of fault."""
    logging.getLogger("eigenshift").propagate = True
    with faults(fail_first(2, PASSING_FAULTS["slow-down"])), caplog.at_level(logging.WARNING):
        Store(url).write_bytes("a.json", b"x")
    assert caplog.text.count("storage fault, trying again") == 2
    assert "action=write attempt=2/4 fault=OSError" in caplog.text


@pytest.mark.parametrize("fault", sorted(PASSING_FAULTS))
def test_a_fault_that_does_not_pass_ends_in_a_clear_error(url: str, fault: str) -> None:
    """After the last attempt the error names the object, the fault and what to do."""
    with (
        faults(lambda *_: ("before", PASSING_FAULTS[fault]())) as requests,
        pytest.raises(StorageError, match=r"at each of 4 attempts.*finished work is kept"),
    ):
        Store(url).write_bytes("runs/a.json", b"x")
    assert requests["pipe_file"] == ATTEMPTS


@pytest.mark.parametrize(
    ("make_fault", "message"),
    [
        (lambda: PermissionError("The provided token has expired."), "Renew them"),
        (lambda: NoCredentialsError(), "Renew them"),
        (lambda: OSError(errno.ENOSPC, "No space left on device"), "Free some space"),
        (lambda: OSError(errno.EDQUOT, "Disk quota exceeded"), "Free some space"),
        (lambda: OSError(errno.EINVAL, "The specified bucket is not valid."), "Check the URL"),
        (
            lambda: ClientError(
                {
                    "Error": {"Code": "NoSuchBucket"},
                    "ResponseMetadata": {"HTTPStatusCode": 404},
                },
                "PutObject",
            ),
            "Check the URL",
        ),
    ],
    ids=["expired", "no-credentials", "disk-full", "quota", "invalid", "no-bucket"],
)
def test_a_fault_that_cannot_pass_is_not_tried_again(
    url: str, make_fault: Callable[[], BaseException], message: str
) -> None:
    """One request, then an error with the remedy."""
    with (
        faults(lambda *_: ("before", make_fault())) as requests,
        pytest.raises(StorageError, match=message),
    ):
        Store(url).write_bytes("a.json", b"x")
    assert requests["pipe_file"] == 1


def test_no_secret_of_the_environment_reaches_an_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client says about credentials is repeated without them."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", MADE_UP_KEY)
    fault = PermissionError(f"signature of {MADE_UP_KEY} does not match")
    with faults(lambda *_: ("before", fault)), pytest.raises(StorageError) as caught:
        Store(url).write_bytes("a.json", b"x")
    shown = "".join(traceback.format_exception(caught.value))  # as Prefect logs it
    assert MADE_UP_KEY not in shown
    assert "[hidden]" in str(caught.value)


def test_sources_are_read_through_faults(url: str) -> None:
    """Listing, digest and content of a source survive a storm of faults."""
    text = b"".join(b"row %d\n" % row for row in range(200_000))
    Store(url).write_bytes("rows.csv", text)
    quiet = digest_file(f"{url}/rows.csv")
    with faults(storm(seed=3, share=0.3)):
        (file,) = list_files(f"{url}/*.csv")
        assert digest_file(file.uri) == quiet
        with open_file(file.uri) as handle:
            assert handle.read() == text


def make_values(artifacts: ArtifactStore, shard: int) -> StageResult:
    """An artifact of two files whose content depends on the shard only."""

    def work(workspace: Workspace) -> None:
        workspace.write_rows("a.parquet", [{"value": shard * 10 + i} for i in range(50)], TABLE)
        workspace.write_json("b.json", {"shard": shard})

    return artifacts.produce(
        "values", step_version=1, settings={"shard": shard}, inputs=[], work=work
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_of_faults_never_leaves_a_wrong_artifact(url: str, seed: int) -> None:
    """Whatever fails, what has a manifest is right, and starting again completes it."""
    artifacts = ArtifactStore(url)
    with faults(storm(seed, share=0.55)):
        for shard in range(4):
            for _ in range(50):
                try:
                    make_values(artifacts, shard)
                    break
                except (StorageError, ArtifactError):
                    continue
    for shard in range(4):
        result = make_values(artifacts, shard)
        assert result.was_cached
        found = artifacts.open(result.reference)
        assert found.read_table("a.parquet")["value"].to_pylist() == [
            shard * 10 + i for i in range(50)
        ]
    assert len(artifacts.list_manifests()) == 4
    assert verify_store(url).problems == []


def test_an_upload_that_arrives_short_is_not_called_complete(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of what the store received is checked before a manifest says it is there."""
    from tests.support.faulty_filesystem import FaultyFileSystem

    def put_half(self: FaultyFileSystem, lpath: str, rpath: str, **_: object) -> None:
        data = Path(lpath).read_bytes()
        self.pipe_file(rpath, data[: len(data) // 2])

    monkeypatch.setattr(FaultyFileSystem, "put_file", put_half)
    artifacts = ArtifactStore(url)
    with pytest.raises(StorageError, match="just written"):
        make_values(artifacts, 0)
    assert artifacts.list_manifests() == []


def test_requests_bytes_and_retries_are_counted(url: str) -> None:
    """The manifest of an artifact says what making it asked of storage."""
    artifacts = ArtifactStore(url)
    with faults(fail_first(2, PASSING_FAULTS["timeout"])):
        made = make_values(artifacts, 0)
    assert made.traffic.retries == 2
    n_bytes = sum(file.bytes for file in artifacts.open(made.reference).manifest.files)
    assert made.traffic.bytes_written > n_bytes
    cached = make_values(artifacts, 0)
    assert cached.traffic.bytes_written == 0
    assert cached.traffic.requests <= 5


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file of this process may grow beyond 64 KiB: as good as a full disk, and real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["rows.parquet", "document.json"])
def test_a_full_local_disk_is_named_and_leaves_nothing_half_done(
    tmp_path: Path, small_disk: None, name: str
) -> None:
    """Writing fails in the middle of a file; no artifact appears, the error says what to do."""
    artifacts = ArtifactStore(str(tmp_path / "store"))

    def work(workspace: Workspace) -> None:
        if name.endswith(".json"):
            workspace.write_json(name, ["x" * 100] * 10_000)
        else:
            noise = pa.array(list(os.urandom(400_000)), pa.int64())
            workspace.write_table(name, pa.table({"value": noise}), TABLE)

    with pytest.raises(StorageError, match=r"disk or the quota is\s+full"):
        artifacts.produce("values", step_version=1, settings={}, inputs=[], work=work)
    assert artifacts.list_manifests() == []
    assert list((tmp_path / "store" / "work").iterdir()) == []


def test_a_full_disk_in_the_middle_of_a_put_leaves_the_old_object(
    tmp_path: Path, small_disk: None
) -> None:
    """The pointer of a release is either the old or the new one."""
    store = Store(str(tmp_path))
    store.write_bytes("current.json", b"old")
    with pytest.raises(StorageError, match="Free some space"):
        store.write_bytes("current.json", b"n" * 100_000)
    assert store.read_bytes("current.json") == b"old"
    assert store.list_paths("") == ["current.json"]


def test_a_missing_artifact_is_told_apart_from_storage_that_is_down(url: str) -> None:
    """When the store does not answer, nothing is called missing, and nothing is made again."""
    artifacts = ArtifactStore(url)
    made = make_values(artifacts, 0)
    with faults(lambda *_: ("before", TimeoutError("timed out"))), pytest.raises(StorageError):
        artifacts.find(made.reference)
    absent = ArtifactReference(kind="values", fingerprint="0" * 40)
    assert artifacts.find(absent) is None
