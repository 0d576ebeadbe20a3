"""A source that grows: only what is new is read and run through the model."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
ROWS = 40


OF_LABELLED_TEXT = (
    "read_file",
    "ingest_source",
    "extract_activations",
    "summarise_neurons",
    "compute_neuron_statistics",
    "compute_neuron_stability",
    "compute_layer_statistics",
    "compute_layer_transfers",
)
"""Stages that study which parts detect toxicity."""


@pytest.fixture
def parts(load_small: Callable[..., RefreshSettings], tmp_path: Path) -> list[list[list[str]]]:
    """The demo's first labelled source, cut into parts, header first."""
    with Path(load_small().sources[0].uri).open(newline="", encoding="utf-8") as handle:
        header, *rows = list(csv.reader(handle))
    return [[header, *rows[first : first + ROWS]] for first in range(0, 5 * ROWS, ROWS)]


def write_part(folder: Path, number: int, rows: list[list[str]]) -> None:
    """Write one file of the growing source."""
    folder.mkdir(exist_ok=True)
    with (folder / f"part-{number}.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)


def count_work(outcome: Any) -> dict[str, int]:
    """Shards that were worked on, by stage."""
    return {
        stage.name: stage.shards - stage.shards_cached
        for stage in outcome.stages
        if stage.shards > stage.shards_cached
    }


def describe_statistics(store_url: str, run_id: str) -> dict[str, list[str]]:
    """Digests of the tables of neurons and layers a run ended with."""
    from eigenshift.ledger.runs import read_run

    artifacts = ArtifactStore(store_url)
    return {
        f"{use.kind}/{use.fingerprint}": [
            file.sha256
            for file in artifacts.open(
                read_run(artifacts.store, run_id).find_artifact(use.kind)
            ).manifest.files
        ]
        for use in read_run(artifacts.store, run_id).artifacts
        if use.kind in ("neurons", "neuron_stability", "layers", "layer_transfers")
    }


def test_new_files_and_appended_rows_cost_only_themselves(
    load_small: Callable[..., RefreshSettings], parts: list[list[list[str]]], tmp_path: Path
) -> None:
    """One more file, then more rows in it; the end equals a run that saw it all at once."""
    from flows.refresh import run_refresh

    folder = tmp_path / "growing"
    growing = (f"sources.0.uri={folder}/*.csv", "sources.0.max_rows=null")
    for number in range(3):
        write_part(folder, number, parts[number])
    first = count_work(run_refresh(load_small(*growing)))
    assert first["read_file"] == 6  # three parts and the three other sources
    write_part(folder, 3, parts[3])
    work = count_work(run_refresh(load_small(*growing)))
    assert {name: work.get(name) for name in OF_LABELLED_TEXT} == {
        "read_file": 1,
        "ingest_source": 1,
        "extract_activations": 1,
        "summarise_neurons": 1,
        "compute_neuron_statistics": 1,
        "compute_neuron_stability": 1,
        "compute_layer_statistics": 1,
        "compute_layer_transfers": 1,
    }
    # new harmless texts are new cost, so arms are tuned and judged anew; what the base says is not
    assert not {"locate_toxic_words", "collect_head_states", "decompose_head"} & set(work)
    write_part(folder, 3, [*parts[3], *parts[4][1:]])
    outcome = run_refresh(load_small(*growing))
    work = count_work(outcome)
    assert work["read_file"] == 1
    assert work["extract_activations"] <= 2  # at most the partly filled shard and the new one
    scratch = load_small(*growing).model_copy(update={"store": str(tmp_path / "from-scratch")})
    again = run_refresh(scratch)
    assert describe_statistics(scratch.store, again.run_id) == describe_statistics(
        load_small().store, outcome.run_id
    )
    assert again.metrics == outcome.metrics
