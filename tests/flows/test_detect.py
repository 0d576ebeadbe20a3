"""Detection alone: the tables of a refresh, without prompts, also of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.audit.questions import fill_question
from eigenshift.base.errors import ModelError
from eigenshift.ledger.runs import read_run
from eigenshift.reporting.html_report import write_html_report
from eigenshift.settings import DetectionSettings, RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.upkeep.verification import verify_store

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]


def keep_labelled(settings: RefreshSettings, **changes: Any) -> DetectionSettings:
    """The same settings with the labelled sources only."""
    document = settings.model_dump(mode="json") | changes
    document["sources"] = document["sources"][:2]
    return DetectionSettings.model_validate(document)


def list_tables(store_url: str, run_id: str) -> set[tuple[str, str]]:
    """Kind and fingerprint of the statistics of a run."""
    record = read_run(ArtifactStore(store_url).store, run_id)
    kinds = ("neurons", "neuron_stability", "layers", "layer_transfers")
    return {(use.kind, use.fingerprint) for use in record.artifacts if use.kind in kinds}


def test_detection_gives_a_refreshs_tables(load_small: Load) -> None:
    """The refresh that follows finds all of detection's artifacts."""
    from flows.detect import run_detect
    from flows.refresh import run_refresh

    settings = load_small()
    with pytest.raises(ValueError, match="at least one source of each role"):
        RefreshSettings.model_validate(keep_labelled(settings).model_dump())
    detection = run_detect(keep_labelled(settings))
    outcome = run_refresh(settings)
    found = list_tables(settings.store, detection.run_id)
    assert found
    assert found == list_tables(settings.store, outcome.run_id)
    detected = {stage.name for stage in detection.stages} - {"read_file", "ingest_source"}
    for stage in outcome.stages:
        if stage.name in detected:
            assert stage.shards_cached == stage.shards, stage.name


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny random BERT with a head for masked tokens, and a tokenizer."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_is_studied_and_reported(
    load_small: Load, encoder_folder: Path, tmp_path: Path
) -> None:
    """Units and layers of a BERT, the report about them, and a store that verifies."""
    from flows.detect import run_detect

    settings = keep_labelled(load_small(f"model.id={encoder_folder}"))
    detection = run_detect(settings)
    with open_audit(settings.store) as session:
        units = session.query(fill_question("paper_rq1", detection.run_id)).to_pylist()
        transfers = session.query(fill_question("paper_datasets", detection.run_id)).to_pylist()
    assert [(row["dataset"], row["read_at"], row["units"]) for row in units] == [
        (dataset, site, n_units)
        for dataset in ("jigsaw", "toxicn")
        for site, n_units in (("mlp_activation (max)", 24), ("residual (mean)", 16))
    ]
    assert all(0 <= row["layer_auroc"] <= 1 for row in units)
    assert len(transfers) == 4
    assert write_html_report(settings.store, None, tmp_path / "report.html") == detection.run_id
    assert "Single units as detectors" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert verify_store(settings.store).problems == []


def test_a_refresh_of_an_encoder_is_refused_before_it_reads_texts(
    load_small: Load, encoder_folder: Path
) -> None:
    """It has nothing that generates; the error says what to run instead."""
    from flows.refresh import run_refresh

    settings = load_small(f"model.id={encoder_folder}")
    with pytest.raises(ModelError, match=r"found an encoder.*eigenshift detect"):
        run_refresh(settings)
    kinds = {manifest.kind for manifest in ArtifactStore(settings.store).list_manifests()}
    assert kinds == {"model"}


def test_labelled_sources_are_needed(load_small: Load) -> None:
    """Without them there is nothing to detect."""
    document = load_small().model_dump(mode="json")
    with pytest.raises(ValueError, match="none for: labelled"):
        DetectionSettings.model_validate(document | {"sources": document["sources"][2:]})
