"""One Prefect server for all flow tests, and settings small enough to run the line in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "sources.0.max_rows=60",
    "sources.1.max_rows=60",
    "sources.3.max_rows=30",
    "ingestion.rows_per_shard=40",
    "activations.layers=[1]",
    "prompts.n_selection=40",
    "prompts.n_evaluation=20",
    "prompts.prompts_per_shard=20",
    "generation.n_samples=4",
    "generation.n_tokens=12",
    "components.min_toxic_positions=5",
    "harmless.n_continuations=60",
    "harmless.n_labelled=40",
    "harmless.n_evaluated=40",
    "patch.n_terms=6",
    "patch.n_deep_terms=6",
    "patch.n_rounds=2",
    "patch.max_metric_tokens=2000",
    "evaluation.n_bootstrap=200",
    "scorer_quality.n_texts=40",
    "gate.n_random_draws=19",
    "gate.max_random_share=0.05",
    "gate.check_reload=false",  # it runs for a promoted patch only; test_gate.py switches it on
)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a database of its own, started once.

    Without heartbeats a flow run does not wait a second for their thread to end.
    """
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_SERVER_ANALYTICS_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    with (
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        ),
        prefect_test_harness(server_startup_timeout=180),
    ):
        yield


@pytest.fixture
def load_small(tmp_path: Path) -> Any:
    """A function that loads the demo's settings, made small, with overrides and its own store."""
    from eigenshift.settings import load_preset

    def load(*overrides: str) -> Any:
        store = f"store={tmp_path / 'store'}"
        return load_preset("demo", [*SMALL, store, *overrides])

    return load


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """The store of a finished run, to be copied."""
    from eigenshift.settings import load_preset
    from flows.refresh import run_refresh

    store = tmp_path_factory.mktemp("finished") / "store"
    run_refresh(load_preset("demo", [*SMALL, f"store={store}"]))
    return store
