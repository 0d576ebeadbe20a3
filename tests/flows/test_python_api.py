"""The Python API against a finished run: the same texts and settings, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eigenshift.api import (
    compute_neurons,
    evaluate,
    extract_activations,
    load_model,
    load_scorer,
    open_audit,
    read_texts,
    study_head,
)
from eigenshift.settings import load_preset
from tests.flows.conftest import SMALL

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def compare(found: pa.Table, expected: pa.Table, columns: list[str], tolerance: float) -> None:
    """Numbers of two tables, nulls in the same places; rows in the same order."""
    assert len(found) == len(expected) > 0
    for name in columns:
        one, other = (
            np.array(table[name].to_pylist(), dtype=np.float64) for table in (found, expected)
        )
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_study_in_memory_gives_a_runs_numbers(finished_store: Path) -> None:
    """Units, components and the verdict on the patch; a run's shards differ, so to rounding."""
    settings = load_preset("demo", [*SMALL, f"store={finished_store}"])
    model = load_model(settings.model, device="cpu")
    scorer = load_scorer(settings.scorer)
    comments, chinese, prompts, neutral = map(read_texts, settings.sources)
    with open_audit(finished_store) as audit:
        units = audit.ask(
            "SELECT * FROM neurons WHERE dataset = 'jigsaw' ORDER BY site, pooling, neuron_index"
        ).arrow
        components = audit.ask(
            "SELECT * FROM components WHERE basis = 'singular' ORDER BY component_index"
        ).arrow
        evaluations = audit.ask("SELECT * FROM evaluations ORDER BY arm, metric, slice").arrow

    activations = extract_activations(model, comments, layers=[1])
    own = compute_neurons(activations).arrow.sort_by(
        [(name, "ascending") for name in ("site", "pooling", "neuron_index")]
    )
    compare(own, units, ["layer", "neuron_index", "n_toxic", "n_nontoxic"], 0)
    compare(own, units, ["auroc", "mean_toxic", "mean_nontoxic"], 5e-3)

    both = pa.concat_tables([comments.samples, chinese.samples])
    labelled = type(comments)(both, "labelled")
    selection, evaluation = prompts.split(40, 20)
    study = study_head(model, selection, neutral, labelled, scorer=scorer, settings=settings)
    found = study.components.arrow.sort_by("component_index")
    compare(found, components, ["sigma", "effect_size", "auroc", "logit_gain", "factor"], 1e-3)
    assert found["is_selected"].equals(components["is_selected"])

    verdict = evaluate(study.build_patch(), evaluation, scorer, neutral=neutral, settings=settings)
    expected = {
        (row["arm"], row["metric"]): row["value"]
        for row in evaluations.to_pylist()
        if row["slice"] == "all"
    }
    for arm in verdict.arms:
        for metric, tolerance in (("toxicity_rate", 0.02), ("perplexity", 0.02)):
            value = verdict.find(metric, arm).value
            assert value == pytest.approx(expected[arm, metric], abs=tolerance), (arm, metric)
