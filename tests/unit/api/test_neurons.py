"""Activations and the table of units: against scikit-learn, and against a run's own stages."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from eigenshift.api.models import Model
from eigenshift.api.neurons import compute_neurons, extract_activations
from eigenshift.api.texts import Texts, read_texts
from eigenshift.base.errors import DatasetError, SettingsError
from eigenshift.datasets import stages as datasets
from eigenshift.detection import stages as detection
from eigenshift.model import stages as model_stages
from eigenshift.settings import DetectionSettings, RefreshSettings
from eigenshift.stages import tables
from eigenshift.stages.running import run_stage
from eigenshift.stages.stage import Place
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import choose_file

SITES = ["mlp_activation_max", "residual_mean"]


def read_layer(table: pa.Table, site: str) -> np.ndarray:
    """Values, shape (text, unit)."""
    return np.array(table[site].to_pylist(), dtype=np.float64)


def test_units_are_judged_as_scikit_learn_does(model: Model, texts: Texts) -> None:
    """Exact AUROC of every unit of a layer, from the values themselves."""
    activations = extract_activations(model, texts, sites=SITES)
    units = compute_neurons(activations).arrow.to_pylist()
    is_toxic = texts.samples["is_toxic"].to_pylist()
    values = read_layer(activations.read(1, "mlp_activation_max"), "mlp_activation_max")
    expected = [roc_auc_score(is_toxic, column) for column in values.T]
    found = [
        row["auroc"]
        for row in units
        if (row["layer"], row["site"], row["language"]) == (1, "mlp_activation", "all")
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_best_units_are_shown_first(model: Model, texts: Texts) -> None:
    """Whichever way they point."""
    units = compute_neurons(extract_activations(model, texts, sites=SITES))
    assert units.first is not None
    aurocs = units.arrow["auroc"].to_numpy(zero_copy_only=False)
    strength = np.abs(aurocs[list(units.first)] - 0.5)
    assert strength[0] == np.nanmax(np.abs(aurocs - 0.5))
    assert (np.diff(strength) <= 0).all()


def run_stages(settings: RefreshSettings) -> pa.Table:
    """The units of all layers as a run makes them, in a store."""
    place = Place(settings.store, settings.model, settings.execution)
    artifacts = ArtifactStore(settings.store)
    (source,) = settings.sources
    content = datasets.ReadingInputs(content=datasets.SourceContent(source=source))
    read = run_stage(
        datasets.READ_FILE, content, datasets.ReadingKey.of(settings, source=source), place
    )
    records = (datasets.RecordFiles.choose(read.files),)
    ingested = run_stage(
        datasets.INGEST_SOURCE,
        datasets.IngestionInputs(records=records),
        datasets.IngestionKey.of(settings, source=source.name),
        place,
    )
    weights = model_stages.IdentityInputs(weights=model_stages.Weights(model=settings.model))
    identity = model_stages.IdentityKey.of_model(settings)
    described = run_stage(model_stages.IDENTIFY_MODEL, weights, identity, place)
    summaries = []
    for shard in (file for file in ingested.files if tables.SAMPLES.matches(file.file)):
        inputs = detection.ExtractionInputs(model=described.reference, samples=shard)
        key = detection.ActivationKey.of(settings)
        extracted = run_stage(detection.EXTRACT_ACTIVATIONS, inputs, key, place)
        values = choose_file(extracted.files, tables.ACTIVATIONS.file)
        summarised = run_stage(
            detection.SUMMARISE_NEURONS,
            detection.SummaryInputs(activations=values, samples=shard),
            detection.SummaryKey.of(settings, dataset=source.name),
            place,
        )
        summaries.append(choose_file(summarised.files, tables.NEURON_SUMMARIES.file))
    found = []
    for layer in range(2):
        units = run_stage(
            detection.COMPUTE_NEURON_STATISTICS,
            detection.NeuronInputs(summaries=tuple(summaries)),
            detection.NeuronKey.of(settings, dataset=source.name, layer=layer),
            place,
        )
        found.append(artifacts.read_table(choose_file(units.files, tables.NEURONS.file)))
    return pa.concat_tables(found)


def test_the_table_is_the_one_a_run_makes(
    model: Model, tiny_model_folder: Path, neutral_texts: list[str], tmp_path: Path
) -> None:
    """Of the same file: every number of every unit, bit by bit, in both languages and together."""
    path = tmp_path / "texts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, place % 3 == 0) for place, text in enumerate(neutral_texts))
    columns = {"text": "text", "label": "label"}
    settings = DetectionSettings.model_validate(
        {
            "store": str(tmp_path / "store"),
            "model": {"id": str(tiny_model_folder)},
            "sources": [
                {
                    "name": "made-up",
                    "format": "sentences",
                    "role": "labelled",
                    "uri": str(path),
                    "columns": columns,
                }
            ],
            "execution": {"device": "cpu"},
        }
    )
    expected = run_stages(settings)
    texts = read_texts(path, name="made-up", role="labelled", columns=columns)
    found = compute_neurons(extract_activations(model, texts))
    assert found.arrow.equals(expected)


def test_texts_without_labels_are_refused(model: Model, neutral: Texts) -> None:
    """There is nothing to tell apart."""
    activations = extract_activations(model, neutral[:4], sites=SITES, layers=[1])
    with pytest.raises(DatasetError, match="none with a label"):
        compute_neurons(activations)


@pytest.mark.parametrize("site", ["residual", "residual_sum", "head_mean"])
def test_an_unknown_site_is_refused(model: Model, texts: Texts, site: str) -> None:
    """Naming those there are."""
    with pytest.raises(SettingsError, match="sites: expected"):
        extract_activations(model, texts, sites=[site])


def test_a_layer_that_was_not_read_is_refused(model: Model, texts: Texts) -> None:
    """Naming those that were."""
    activations = extract_activations(model, texts[:4], sites=["residual_mean"], layers=[1])
    assert activations.layers == (1,)
    with pytest.raises(SettingsError, match="found layer 0"):
        activations.read(0)
