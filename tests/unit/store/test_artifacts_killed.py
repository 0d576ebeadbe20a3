"""`kill -9` at every single touch of storage: nothing half-done is ever taken for done.

The work is artifacts that depend on each other and a release. It is killed at its first touch of
storage and started again; in another store it is killed at its second, and so on to its last.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eigenshift.base.schemas import describe_column
from eigenshift.ledger.releases import (
    Release,
    list_releases,
    promote_patch,
    read_current,
    settle_current,
)
from eigenshift.store.artifacts import ArtifactStore, Order
from eigenshift.store.manifests import ArtifactReference, Manifest
from eigenshift.store.workspace import Workspace
from tests.support.killed_work import prepare, run_to_moment

TABLE = pa.schema([describe_column("value", pa.int64(), "Made up")])
MODEL = "made-up/model"
N_SHARDS = 2


def do_the_work(root: str) -> None:
    """Make the artifacts, each from the one before, and release the last."""
    artifacts = ArtifactStore(root)
    reference: ArtifactReference | None = None
    for shard in range(N_SHARDS):

        def work(workspace: Workspace, shard: int = shard) -> None:
            rows = [{"value": shard * 1000 + index} for index in range(100)]
            workspace.write_rows("values.parquet", rows, TABLE)
            workspace.write_json("notes.json", {"shard": shard})

        reference = artifacts.produce(
            "values",
            step_version=1,
            settings={"shard": shard},
            inputs=[] if reference is None else [reference],
            work=work,
        ).reference
    assert reference is not None
    artifacts.produce_together(
        "values",
        step_version=1,
        orders={name: Order({"together": name}, [reference]) for name in "ab"},
        work=write_together,
    )
    promote_patch(artifacts.store, MODEL, "run", reference, "made up")
    settle_current(artifacts.store, MODEL)


def write_together(workspaces: Mapping[str, Workspace]) -> Generator[Sequence[str], None, None]:
    """Several artifacts of one piece of work."""
    for name, workspace in workspaces.items():
        workspace.write_rows("values.parquet", [{"value": ord(name)}], TABLE)
    yield tuple(workspaces)


def describe(manifests: Mapping[str, Manifest]) -> dict[str, dict[str, str]]:
    """Digest of every file of every artifact."""
    return {
        fingerprint: {file.name: file.sha256 for file in manifest.files}
        for fingerprint, manifest in manifests.items()
    }


def list_sound(root: str) -> Mapping[str, Manifest]:
    """Manifests in the store, each with all its files right: that is what complete means."""
    artifacts = ArtifactStore(root)
    found = {manifest.fingerprint: manifest for manifest in artifacts.list_manifests()}
    for manifest in found.values():
        reference = ArtifactReference(kind=manifest.kind, fingerprint=manifest.fingerprint)
        for file in artifacts.open(reference).files:
            assert artifacts.store.digest(file.path) == file.sha256
    return found


def kill_and_go_on(
    context: Any, root: str, moment: int, undisturbed: Mapping[str, Mapping[str, str]]
) -> bool:
    """Kill the work at one moment, start it again; return whether it had lived to its end."""
    is_alive = run_to_moment(context, do_the_work, [root], moment)
    complete = list_sound(root)
    assert len(list_releases(ArtifactStore(root).store, MODEL)) <= 1
    do_the_work(root)
    found = list_sound(root)
    for fingerprint, manifest in complete.items():  # what was complete is not done again
        assert found[fingerprint] == manifest
    assert describe(found) == undisturbed
    store = ArtifactStore(root).store
    (release,) = list_releases(store, MODEL)
    assert read_current(store, MODEL) == release
    pointer = store.read_bytes("releases/made-up--model/current.json")
    assert Release.model_validate_json(pointer) == release
    return is_alive


@pytest.fixture(scope="module")
def context() -> Any:
    """Where killed processes come from."""
    return prepare(["s3fs", __name__])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the work makes where nothing kills it."""
    root = str(tmp_path_factory.mktemp("undisturbed"))
    do_the_work(root)
    return describe(list_sound(root))


def test_a_local_store_survives_a_kill_at_every_touch(
    tmp_path: Path, context: Any, undisturbed: dict[str, dict[str, str]]
) -> None:
    """Finished artifacts are kept, half-done ones are invisible, the release is made once."""
    moments = 0
    while not kill_and_go_on(context, str(tmp_path / f"store-{moments}"), moments, undisturbed):
        moments += 1
    assert moments >= 40


@pytest.mark.s3
@pytest.mark.parametrize("stride", [11, pytest.param(3, marks=pytest.mark.slow)])
def test_an_s3_store_survives_a_kill_at_every_so_many_requests(
    context: Any, s3_store_url: str, undisturbed: dict[str, dict[str, str]], stride: int
) -> None:
    """The same on a real S3 server, in turn before and after requests, as strides are odd."""
    moments = 0
    while not kill_and_go_on(context, f"{s3_store_url}-{moments}", moments, undisturbed):
        moments += stride
    assert moments >= 30
