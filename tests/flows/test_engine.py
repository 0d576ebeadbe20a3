"""A refresh whose continuations are drawn by an engine (a stand-in for vLLM)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from eigenshift.upkeep.verification import verify_store
from tests.support.fake_vllm import NAMES, install_fake_vllm

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]


def test_a_run_without_its_engine_ends_before_its_work(
    load_small: Callable[..., RefreshSettings],
) -> None:
    """The package is not installed here; the message names the setting."""
    from flows.refresh import run_refresh

    with pytest.raises(SettingsError, match=r"generation\.backend"):
        run_refresh(load_small("generation.backend=vllm"))


@pytest.mark.slow
def test_an_engine_draws_every_arm_and_is_started_once_for_each(
    monkeypatch: pytest.MonkeyPatch, load_small: Callable[..., RefreshSettings]
) -> None:
    """The base on the selection prompts, then base with A/A and three patches; the rest is ours."""
    from flows.refresh import run_refresh

    engine_class = install_fake_vllm(monkeypatch)
    settings = load_small("generation.backend=vllm", "prompts.prompts_per_shard=10")
    run_refresh(settings)
    artifacts = ArtifactStore(settings.store)
    record = read_run(artifacts.store, list_run_ids(artifacts.store)[-1])
    found = [use for use in record.artifacts if use.kind == "continuations"]
    for use in found:
        reference = ArtifactReference(kind=use.kind, fingerprint=use.fingerprint)
        facts = artifacts.open(reference).manifest.facts
        assert facts["engine"] == f"vllm {NAMES['version']}"
    assert len(found) == 4 + 5 * 2  # shards of the base, and of five arms
    assert len(engine_class.started) == 1 + 4
    assert engine_class.n_alive == 0
    assert not verify_store(settings.store).problems
    run_refresh(settings)
    assert len(engine_class.started) == 1 + 4
