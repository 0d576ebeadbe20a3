"""A refresh over a damaged store, and one whose storage keeps failing: both end as they should."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.base.errors import DamagedFileError
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.filesystems import RetryPolicy
from eigenshift.store.manifests import MANIFEST_NAME
from eigenshift.upkeep.repair import repair_store
from eigenshift.upkeep.verification import verify_store
from tests.support.faulty_filesystem import faults, storm

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]


def count_work(outcome: Any) -> dict[str, int]:
    """Shards that were worked on, by stage."""
    return {
        stage.name: stage.shards - stage.shards_cached
        for stage in outcome.stages
        if stage.shards > stage.shards_cached
    }


def damage_three(store: Path) -> None:
    """A file truncated, a bit flipped, a manifest deleted: three artifacts of three kinds."""
    activations, scores = (
        next(
            path
            for path in sorted((store / "artifacts" / kind).glob("*/*"))
            if path.name != MANIFEST_NAME
        )
        for kind in ("activations", "scores")
    )
    activations.write_bytes(activations.read_bytes()[:-100])
    data = bytearray(scores.read_bytes())
    data[len(data) // 2] ^= 4
    scores.write_bytes(bytes(data))
    next(iter(sorted((store / "artifacts" / "neurons").glob(f"*/{MANIFEST_NAME}")))).unlink()


@pytest.mark.parametrize("is_repaired", [False, True])
def test_only_what_is_damaged_is_made_again(
    load_small: Load, finished_store: Path, is_repaired: bool
) -> None:
    """With or without `verify --repair`: what is made again has the same bytes, so no more is."""
    from flows.refresh import run_refresh

    settings = load_small()
    shutil.copytree(finished_store, settings.store)
    damage_three(Path(settings.store))
    verdict = verify_store(settings.store)
    assert len(verdict.damaged) == 2
    if is_repaired:
        repair_store(settings.store, verdict)
    assert count_work(run_refresh(settings)) == {
        "extract_activations": 1,
        "compute_neuron_statistics": 1,
        "score_continuations": 1,
    }
    assert verify_store(settings.store).problems == []


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_damage_between_two_stages_ends_the_run_and_only_that_shard_is_made_again(
    load_small: Load, finished_store: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """Found sound, changed before it is read: no number rests on it, in any kind of worker."""
    from flows import detection_stages
    from flows.refresh import run_refresh

    # One worker: a process of a pool imports everything first, and one is as good as two here.
    alone = "execution.concurrency=1"
    settings = load_small("statistics.ridge=10", f"execution.runner={runner}", alone)
    shutil.copytree(finished_store, settings.store)
    store = Path(settings.store)
    judge = detection_stages._judge_units

    def damage_first(*arguments: Any) -> Any:
        found = sorted((store / "artifacts" / "activations").glob("*/*.parquet"))
        data = bytearray(found[0].read_bytes())
        data[len(data) // 2] ^= 4
        found[0].write_bytes(bytes(data))
        return judge(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(detection_stages, "_judge_units", damage_first)
        with pytest.raises(DamagedFileError, match="only this shard"):
            run_refresh(settings)
    assert len(list((store / "damaged").glob(f"*/artifacts/activations/*/{MANIFEST_NAME}"))) == 1
    work = count_work(run_refresh(settings))
    assert set(work) == {
        "extract_activations",
        "compute_layer_statistics",
        "compute_layer_transfers",
    }
    assert work["extract_activations"] == 1
    assert verify_store(settings.store).problems == []


def test_a_refresh_through_a_storm_of_faults_ends_with_the_same_artifacts(
    load_small: Load, finished_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in eight fails, before or after its work; every byte is as without faults."""
    from flows.refresh import run_refresh

    for module in ("storage", "range_reader"):
        monkeypatch.setattr(f"eigenshift.store.{module}.RETRIES", RetryPolicy(12, 0.001, 0.01))
    url = f"faulty://{uuid.uuid4().hex}"
    with faults(storm(seed=5, share=0.12)):
        outcome = run_refresh(load_small(f"store={url}"))
    assert sum(stage.traffic.retries for stage in outcome.stages) > 20

    def describe(store_url: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
        return {
            (item.kind, item.fingerprint): [(file.name, file.sha256) for file in item.files]
            for item in ArtifactStore(store_url).list_manifests()
        }

    assert describe(url) == describe(str(finished_store))
    assert verify_store(url).problems == []
