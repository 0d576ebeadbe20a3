"""Damage of every kind, to every kind of object: found on use, listed, set aside, made again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenshift.base.errors import ArtifactError
from eigenshift.ledger.releases import CURRENT_NAME
from eigenshift.ledger.runs import choose_run
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.manifests import MANIFEST_NAME, Manifest
from eigenshift.store.storage import Store
from eigenshift.store.workspace import Workspace
from eigenshift.upkeep.repair import repair_store
from eigenshift.upkeep.retention import collect_garbage
from eigenshift.upkeep.verification import verify_store
from tests.support.small_store import SmallStore, build_small_store

Damage = Callable[[bytes], bytes | None]
"""What an object becomes; None: it is deleted."""


def flip_one_bit(data: bytes) -> bytes:
    """Change one bit in the middle."""
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return bytes(flipped)


DAMAGES: dict[str, Damage] = {
    "deleted": lambda _: None,
    "emptied": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": flip_one_bit,
    "replaced": lambda _: b"{}",
}


def damage_object(store: Store, path: str, damage: str) -> None:
    """Damage an object behind the back of everybody."""
    left = DAMAGES[damage](store.read_bytes(path))
    if left is None:
        store.remove(path)
    else:
        store.write_bytes(path, left)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, on a local folder and on a real S3 server."""
    return str(
        request.getfixturevalue("s3_store_url") if request.param == "s3" else tmp_path / "store"
    )


def make_shard(url: str, shard: int) -> StageResult:
    """One of several artifacts that know nothing of each other."""

    def work(workspace: Workspace) -> None:
        workspace.write_json("content.json", {"shard": shard, "padding": "x" * 300})

    return ArtifactStore(url).produce(
        "values", step_version=1, settings={"shard": shard}, inputs=[], work=work
    )


@pytest.mark.parametrize("target", ["file", "manifest"])
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damage_is_found_on_use_and_only_that_artifact_is_made_again(
    url: str, caplog: pytest.LogCaptureFixture, damage: str, target: str
) -> None:
    """The log says so; the new content equals the old; the others are untouched."""
    logging.getLogger("eigenshift").propagate = True
    before = [make_shard(url, shard) for shard in range(3)]
    manifest = ArtifactStore(url).open(before[1].reference).manifest
    name = MANIFEST_NAME if target == "manifest" else manifest.files[0].stored_as
    damage_object(Store(url), f"{before[1].reference.folder}/{name}", damage)
    with caplog.at_level(logging.WARNING):
        after = [make_shard(url, shard) for shard in range(3)]
    assert [item.was_cached for item in after] == [True, False, True]
    if not (target == "manifest" and damage == "deleted"):  # then there is nothing to notice
        assert "artifact damaged, made again" in caplog.text
    again = ArtifactStore(url).open(after[1].reference).manifest
    assert [file.sha256 for file in again.files] == [file.sha256 for file in manifest.files]
    assert verify_store(url).problems == []


def test_any_changed_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    """Bits of names, numbers, times and spaces alike: none is taken for the truth."""
    url = str(tmp_path)
    made = make_shard(url, 0)
    path = tmp_path / made.reference.folder / MANIFEST_NAME
    data = path.read_bytes()
    undetected = []
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(bytes(damaged))
        found = ArtifactStore(url).find(made.reference)
        if found is not None and found.manifest != Manifest.model_validate_json(data):
            undetected.append(place)
    assert undetected == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store without damage."""
    return build_small_store(str(tmp_path_factory.mktemp("sound")))


def list_targets(url: str) -> dict[str, Path]:
    """One object of each kind in a store."""
    root = Path(url)
    targets = {
        "run": next((root / "runs").glob("*.json")),
        "pointer": next((root / "releases").glob(f"*/{CURRENT_NAME}")),
    }
    for kind in ("samples", "neurons", "components", "patch", "evaluation"):
        manifest = next((root / "artifacts" / kind).glob(f"*/{MANIFEST_NAME}"))
        targets[f"{kind} manifest"] = manifest
        targets[f"{kind} file"] = next(
            path for path in sorted(manifest.parent.iterdir()) if path != manifest
        )
    return targets


@pytest.mark.parametrize("damage", ["emptied", "truncated", "replaced"])
@pytest.mark.parametrize(
    "name",
    [
        "run",
        "pointer",
        *(
            f"{kind} {what}"
            for kind in ("samples", "neurons", "components", "patch", "evaluation")
            for what in ("manifest", "file")
        ),
    ],
)
def test_verify_names_the_damage_and_repair_sets_it_aside(
    sound: SmallStore, tmp_path: Path, name: str, damage: str
) -> None:
    """Verification changes nothing; after repair no damaged object is left in its place."""
    url = sound.copy_to(tmp_path / "store").url
    target = list_targets(url)[name]
    damage_object(Store(url), target.relative_to(url).as_posix(), damage)
    before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
    verdict = verify_store(url)
    assert any(target.name in line for line in verdict.problems)
    after = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
    assert after == before
    done = repair_store(url, verdict)
    assert done
    assert all(
        content in {path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
        for path, content in before.items()
        if path.name != CURRENT_NAME
    )
    left = verify_store(url)
    assert left.damaged == {}
    assert left.unsettled_models == []
    assert repair_store(url, left) == []


def test_what_was_made_again_meanwhile_is_not_set_aside(sound: SmallStore, tmp_path: Path) -> None:
    """A refresh between the verdict and the repair has done what repair is for."""
    url = sound.copy_to(tmp_path / "store").url
    target = list_targets(url)["neurons manifest"]
    whole = target.read_bytes()
    damage_object(Store(url), target.relative_to(url).as_posix(), "truncated")
    verdict = verify_store(url)
    target.write_bytes(whole)
    (done,) = repair_store(url, verdict)
    assert "left alone" in done
    assert verify_store(url).is_fine


def test_a_damaged_release_record_is_left_to_a_person(sound: SmallStore, tmp_path: Path) -> None:
    """Which patch was in force cannot be computed, so nothing is moved."""
    url = sound.copy_to(tmp_path / "store").url
    path = next(
        item for item in (Path(url) / "releases").rglob("*.json") if item.name != CURRENT_NAME
    )
    path.write_text("{")
    verdict = verify_store(url)
    assert any(path.name in line for line in verdict.problems)
    repair_store(url, verdict)
    assert path.read_text() == "{"


def test_a_damaged_run_record_stops_a_collection_but_not_a_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The latest whole run is shown; what the damaged one needs is unknown till it is set aside."""
    small = build_small_store(str(tmp_path / "store"))
    store = small.artifacts.store
    damaged = small.add_run().run_id
    damage_object(store, f"runs/{damaged}.json", "truncated")
    assert choose_run(store, None).run_id == small.run_id
    assert f"{damaged}.json" in caplog.text
    with pytest.raises(ArtifactError, match="verify --repair"):
        choose_run(store, damaged)
    n_artifacts = len(small.artifacts.list_manifests())
    with pytest.raises(ArtifactError, match=r"found \d+ bytes.*verify --repair"):
        collect_garbage(small.url, keep=1, delete=True)
    assert len(small.artifacts.list_manifests()) == n_artifacts
    repair_store(small.url, verify_store(small.url))
    assert collect_garbage(small.url, keep=1, delete=True).is_done
