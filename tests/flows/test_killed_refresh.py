"""`kill -9` of a whole refresh at random moments, then the same command again.

On a local folder and on a real S3 server. Nothing finished is done again, and in the end every
artifact has the bytes it has in a run that nobody disturbed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.ledger.releases import list_releases
from eigenshift.ledger.runs import list_run_ids
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.upkeep.verification import verify_store
from tests.support.killed_work import run_until
from tests.support.refresh_process import find_api_url, prepare_refreshes, run_refresh_at
from tests.support.s3_server import SECRET_KEY

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

N_KILLS = 10
N_KILLS_ON_S3 = 6  # each costs several times what it costs on a local folder
NO_QUEUE = "execution.overlap=allow"
"""Kills of a holder of the queue's slot are the business of test_overlap.py."""
SECONDS_TO_FINISH = 240.0


def describe(store_url: str) -> dict[tuple[str, str], dict[str, str]]:
    """Digest of every file of every complete artifact."""
    return {
        (manifest.kind, manifest.fingerprint): {file.name: file.sha256 for file in manifest.files}
        for manifest in ArtifactStore(store_url).list_manifests()
    }


@pytest.fixture(scope="module")
def context() -> Any:
    """Where killed processes come from."""
    return prepare_refreshes()


def kill_many_times(
    context: Any, settings: RefreshSettings, undisturbed: RefreshSettings, n_kills: int = N_KILLS
) -> None:
    """Kill runs of `settings` until one ends; compare with a run that nobody disturbed."""
    api_url = find_api_url()
    started = time.perf_counter()
    assert run_until(context, run_refresh_at, [api_url, undisturbed], SECONDS_TO_FINISH)
    whole = time.perf_counter() - started
    stream = random.Random(7)
    done: dict[tuple[str, str], Any] = {}
    n_killed = 0
    for _ in range(n_kills):
        if run_until(
            context, run_refresh_at, [api_url, settings], stream.uniform(0.03, 0.3) * whole
        ):
            break
        n_killed += 1
        artifacts = ArtifactStore(settings.store)
        found = {(item.kind, item.fingerprint): item for item in artifacts.list_manifests()}
        assert {key: found[key] for key in done} == done  # not made again
        done = found
    assert n_killed >= 5
    assert run_until(context, run_refresh_at, [api_url, settings], SECONDS_TO_FINISH)
    assert describe(settings.store) == describe(undisturbed.store)
    verdict = verify_store(settings.store)
    assert verdict.problems == []
    store = ArtifactStore(settings.store).store
    assert len(list_run_ids(store)) >= 2  # a run killed at once leaves no record
    assert len(list_releases(store)) == len(list_releases(ArtifactStore(undisturbed.store).store))


def test_a_refresh_on_a_local_folder_survives_kills(
    load_small: Callable[..., RefreshSettings], tmp_path: Path, context: Any
) -> None:
    """The whole line, killed again and again."""
    kill_many_times(
        context,
        load_small(NO_QUEUE),
        load_small(NO_QUEUE, f"store={tmp_path / 'undisturbed'}"),
    )


@pytest.mark.s3
def test_a_refresh_on_s3_survives_kills(
    load_small: Callable[..., RefreshSettings], s3_store_url: str, context: Any
) -> None:
    """The same on a real S3 server; no credential is left in anything that was written."""
    settings = load_small(NO_QUEUE, f"store={s3_store_url}")
    undisturbed = load_small(NO_QUEUE, f"store={s3_store_url}-undisturbed")
    kill_many_times(context, settings, undisturbed, N_KILLS_ON_S3)
    store = ArtifactStore(settings.store).store
    documents = [store.read_bytes(path) for path in store.list_paths("") if path.endswith(".json")]
    assert len(documents) > 20
    assert not any(SECRET_KEY.encode() in document for document in documents)
