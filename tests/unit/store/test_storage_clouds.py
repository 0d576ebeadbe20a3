"""The store on Google's and Azure's storage, served by emulators: `gs://`, `az://` work as `s3://`.

Needs the clients and emulators of `.ci/clouds install`, which are no part of the environment.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.ledger.releases import list_releases, promote_patch, read_current
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.duckdb_files import register_files
from eigenshift.store.source_files import digest_file, list_files, open_file
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep.verification import verify_store
from tests.support.prefect_server import find_free_port

ROOT = Path(__file__).parents[3]
AZURITE = ROOT / ".venv-clouds" / "node_modules" / ".bin" / "azurite-blob"
IS_INSTALLED = all(map(find_spec, ("gcsfs", "gcp_storage_emulator", "adlfs"))) and AZURITE.exists()
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""Azurite's own, published in its manual."""
SECONDS_TO_START = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not IS_INSTALLED and not os.environ.get("EIGENSHIFT_REQUIRE_CLOUDS"),
        reason="clients and emulators are not installed: .ci/clouds install",
    ),
]

TABLE = pa.schema([pa.field("value", pa.int64())])


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    """Where an emulator of Google's storage answers; it has one bucket."""
    from gcp_storage_emulator.server import create_server

    port = find_free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The connection string of an emulator of Azure's storage; it has one container."""
    from azure.storage.blob import BlobServiceClient

    port = find_free_port()
    words = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--skipApiVersionCheck"]
    words += [
        "--silent",
        "--disableTelemetry",
        "--location",
        str(tmp_path_factory.mktemp("azurite")),
    ]
    endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
        f"BlobEndpoint={endpoint};"
    )
    server = subprocess.Popen([str(AZURITE), *words], stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        with BlobServiceClient.from_connection_string(connection) as client:
            client.create_container("bucket")
        yield connection
    finally:
        server.terminate()
        server.wait(SECONDS_TO_START)


def wait_for_port(port: int) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def connect_to_azure(connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients made from now on connect so."""
    import adlfs

    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    adlfs.AzureBlobFileSystem.clear_instance_cache()


@pytest.fixture(params=["gs", "az"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of its own; the clients find the emulators by their usual variables."""
    if request.param == "gs":
        import gcsfs

        monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("google"))
        gcsfs.GCSFileSystem.clear_instance_cache()
    else:
        connect_to_azure(request.getfixturevalue("azure"), monkeypatch)
    return f"{request.param}://bucket/{uuid.uuid4().hex}"


def make_values(url: str) -> StageResult:
    """A small table as an artifact."""

    def work(workspace: Workspace) -> None:
        workspace.write_rows("values.parquet", [{"value": i} for i in range(1_000)], TABLE)

    return ArtifactStore(url).produce("values", step_version=1, settings={}, inputs=[], work=work)


def test_what_is_written_is_read_back(url: str, tmp_path: Path) -> None:
    """Put, replace, list, look, read by range, fetch, delete."""
    store = Store(url)
    store.check_writable()
    store.write_bytes("runs/a.json", b"one")
    store.write_bytes("runs/a.json", b"two")
    assert store.read_bytes("runs/a.json") == b"two"
    assert store.list_paths("runs") == ["runs/a.json"]
    state = store.inspect("runs/a.json")
    assert state is not None
    assert (state.n_bytes, bool(state.etag), state.modified_at is None) == (3, True, False)
    local = tmp_path / "large.bin"
    data = os.urandom(6 << 20)
    local.write_bytes(data)
    sha256 = digest_file(str(local))
    store.publish_file(local, "large.bin")
    assert store.digest("large.bin") == sha256
    assert (
        store.reader("large.bin", len(data)).read_range(5 << 20, (5 << 20) + 9)
        == (data[5 << 20 : (5 << 20) + 9])
    )
    assert store.fetch("large.bin", sha256).read_bytes() == data
    store.remove("large.bin")
    store.remove("large.bin")
    assert store.find_bytes("large.bin") is None
    assert store.inspect("large.bin") is None


def test_artifacts_are_cached_and_damage_is_found(url: str) -> None:
    """The entity tag stands for the content; a changed byte is made again."""
    made = make_values(url)
    found = make_values(url)
    assert (made.was_cached, found.was_cached, found.traffic.requests) == (False, True, 2)
    artifacts = ArtifactStore(url)
    (file,) = artifacts.open(made.reference).manifest.files
    path = f"{made.reference.folder}/{file.stored_as}"
    data = bytearray(artifacts.store.read_bytes(path))
    data[len(data) // 2] ^= 1
    artifacts.store.write_bytes(path, bytes(data))
    assert not make_values(url).was_cached
    assert verify_store(url).problems == []


def test_duckdb_reads_in_place_and_releases_are_kept(url: str) -> None:
    """A sum over a table where it lies, and two releases with their pointer."""
    made = make_values(url)
    artifacts = ArtifactStore(url)
    connection = duckdb.connect()
    (name,) = register_files(connection, [artifacts.open(made.reference).locate("values.parquet")])
    query = f"SELECT sum(value) FROM read_parquet('{name}')"
    assert {connection.sql(query).fetchall()[0][0] for _ in range(50)} == {499_500}
    for number in (1, 2):
        patch = made.reference.model_copy(update={"fingerprint": f"{number:040d}"})
        promote_patch(artifacts.store, "org/model", f"run-{number}", patch, "test")
    history = list_releases(artifacts.store, "org/model")
    assert len(history) == 2
    assert read_current(artifacts.store, "org/model") == history[-1]


def test_sources_are_listed_and_a_missing_bucket_is_named(url: str) -> None:
    """A glob gives files with their sizes; a wrong bucket is a clear error."""
    Store(url).write_bytes("sources/a.csv", b"a,b\n1,2\n")
    (file,) = list_files(f"{url}/sources/*.csv")
    assert file.n_bytes == 8
    with open_file(file.uri) as handle:
        assert handle.read() == b"a,b\n1,2\n"
    with pytest.raises(SettingsError, match="make the bucket first"):
        Store(f"{url.partition('bucket')[0]}no-such-bucket/store").check_writable()


def test_a_wrong_key_is_refused_at_once_and_not_shown(
    azure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's answer is told apart from a passing fault; trying again would not help."""
    wrong = base64.b64encode(os.urandom(64)).decode()
    connect_to_azure(azure.replace(AZURE_KEY, wrong), monkeypatch)
    with pytest.raises(SettingsError, match="credentials are missing, wrong") as caught:
        Store(f"az://bucket/{uuid.uuid4().hex}").check_writable()
    assert wrong not in str(caught.value)
