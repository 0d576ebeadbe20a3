"""AurA, Damp, Det-0: the right units, by the published factors, within the budget."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.model.layers import list_layers
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.unit_scaling import (
    damp_units,
    make_unit_edit,
    remove_units,
    scale_by_auroc,
)
from eigenshift.patches.requests import Need, PatchRequest

TOKENS = torch.tensor([[5, 9, 17, 3, 40, 2]])


def test_aura_equals_the_published_hook(evidence: Evidence) -> None:
    """Logits are those of the release's hook, y * min(1, 2 (1 - AUROC)), written out here.

    AurA's code multiplies a layer's output by 1 - 2 (AUROC - 0.5) where AUROC > 0.5.
    """
    from eigenshift.patches.folding import run_hooked

    model = evidence.language_model
    rows = evidence.units.to_pylist()
    names = {"mlp_up": ("c_fc", "up_proj"), "mlp_gate": ("gate_proj",)}
    names["mlp_down"] = ("c_proj", "down_proj")
    handles = []
    for layer, block in enumerate(list_layers(model.model)):
        for site, ends in names.items():
            aurocs = {
                row["neuron_index"]: row["auroc"] or 0.5
                for row in rows
                if row["layer"] == layer and row["site"] == site
            }
            for name, module in block.mlp.named_modules():
                if name in ends:
                    n_units = len(module.bias) if hasattr(module, "nf") else module.out_features
                    alphas = torch.ones(n_units)
                    for index, auroc in aurocs.items():
                        alphas[index] = 1 - 2 * (auroc - 0.5) if auroc > 0.5 else 1.0
                    handles.append(
                        module.register_forward_hook(
                            lambda _m, _a, out, alphas=alphas: out * alphas
                        )
                    )
    request = PatchRequest(max_perplexity_increase=1e9)  # as published: whatever it costs
    with torch.inference_mode():
        expected = model.model(TOKENS).logits.clone()
        for handle in handles:
            handle.remove()
        with run_hooked(model, scale_by_auroc(evidence, request).edit):
            found = model.model(TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("build", "factor"), [(damp_units, 0.5), (remove_units, 0.0)])
def test_the_best_units_over_all_layers_are_scaled(
    build: object, factor: float, evidence: Evidence
) -> None:
    """Exactly the k rows with the largest AUROC get the factor."""
    outcome = build(evidence, PatchRequest(n_components=7))  # type: ignore[operator]
    aurocs = sorted((row["auroc"] or 0.5 for row in evidence.units.to_pylist()), reverse=True)
    n_scaled = sum(int((unit.scale == factor).sum()) for unit in outcome.edit.units.values())
    assert n_scaled == 7
    assert outcome.parameters["n_units"] == 7
    best = evidence.units.sort_by([("auroc", "descending")]).slice(0, 7)
    assert min(best["auroc"].to_pylist()) == aurocs[6]
    expected = make_unit_edit(evidence.language_model, best, np.full(7, factor))
    assert expected.units.keys() == outcome.edit.units.keys()
    for name, unit in expected.units.items():
        assert torch.equal(unit.scale, outcome.edit.units[name].scale)


def test_as_many_units_are_damped_as_the_budget_allows(evidence: Evidence) -> None:
    """A wider budget never takes fewer units, and the cost found is within it."""
    chosen = {}
    for budget in (0.0, 0.02, 100.0):
        request = PatchRequest(intervention="det0", max_perplexity_increase=budget)
        parameters = remove_units(evidence, request).parameters
        chosen[budget] = parameters["n_units"]
        if budget:
            assert parameters["calibration_perplexity_increase"] <= budget
    assert chosen[0.0] <= chosen[0.02] <= chosen[100.0]
    assert chosen[100.0] == len(evidence.units)


def test_units_of_another_model_are_refused(evidence: Evidence) -> None:
    """A unit the module does not have is named."""
    row = evidence.units.to_pylist()[0] | {"neuron_index": 100_000}
    units = pa.Table.from_pylist([row], schema=schemas.NEURONS)
    with pytest.raises(ComponentError, match="another model"):
        make_unit_edit(evidence.language_model, units, np.zeros(1))


def test_a_fused_projection_scales_its_own_half(evidence: Evidence, tiny_tokenizer: object) -> None:
    """Phi-3 has gate and up in one linear layer: unit i of `up` is row intermediate + i."""
    from transformers import Phi3Config, Phi3ForCausalLM

    from eigenshift.model.loading import wrap_model

    config = Phi3Config(
        vocab_size=len(tiny_tokenizer),  # type: ignore[arg-type]
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        pad_token_id=0,
    )
    model = wrap_model(Phi3ForCausalLM(config), tiny_tokenizer, model_id="phi", digest="x")
    rows = [
        {"language": "all", "layer": 0, "site": site, "neuron_index": index, "auroc": auroc}
        for site, index, auroc in (("mlp_up", 5, 0.9), ("mlp_gate", 2, 0.8))
    ]
    units = pa.Table.from_pylist(rows, schema=schemas.NEURONS)
    given = {need: evidence.given[need] for need in (Need.neutral_texts, Need.harmless_texts)}
    request = PatchRequest(max_perplexity_increase=1e9)
    edit = scale_by_auroc(Evidence(model, {**given, Need.units: units}), request).edit
    (scale,) = (unit.scale for unit in edit.units.values())
    changed = {int(place): float(scale[place]) for place in torch.nonzero(scale != 1).flatten()}
    assert changed == pytest.approx({24 + 5: 0.2, 2: 0.4})


@pytest.mark.parametrize("build", [scale_by_auroc, damp_units, remove_units])
def test_rows_of_single_languages_change_nothing(build: object, evidence: Evidence) -> None:
    """A data set of two languages has three rows a unit; that of all languages counts."""
    rows = evidence.units.to_pylist()
    others = [
        row | {"language": language, "auroc": 0.99 if row["neuron_index"] % 2 else 0.01}
        for row in rows
        for language in ("en", "zh")
    ]
    table = pa.Table.from_pylist([*others, *rows], schema=schemas.NEURONS)
    of_all = dataclasses.replace(evidence, given={**evidence.given, Need.units: table})
    request = PatchRequest(n_components=None if build is scale_by_auroc else 7)
    found, expected = (build(each, request) for each in (of_all, evidence))  # type: ignore[operator]
    assert found.edit.units.keys() == expected.edit.units.keys()
    for name, unit_edit in expected.edit.units.items():
        torch.testing.assert_close(found.edit.units[name].scale, unit_edit.scale, atol=0, rtol=0)
