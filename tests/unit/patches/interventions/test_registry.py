"""Every intervention: builds an edit that folds as it hooks, from the evidence it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eigenshift.base.errors import ComponentError, SettingsError
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edit_files import list_tensors
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.interventions.building import build_patch
from eigenshift.patches.interventions.interface import Evidence
from eigenshift.patches.interventions.registry import INTERVENTIONS, find_recipe
from eigenshift.patches.patching import Patch, load_patch, patched_model
from eigenshift.patches.requests import Need, PatchRequest
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from eigenshift.store.workspace import Workspace

TOKENS = torch.tensor([[5, 9, 17, 3, 40, 2], [7, 7, 30, 11, 4, 1]])
NO_BIAS = {"linear_act", "leace", "eigenshift_centered"}
"""Have a constant, which a Llama has no parameter for."""
NO_HEAD_BIAS = {"token_suppression_bias"}
"""Need a bias of the head itself, which neither model has."""
ADAPTIVE = {"chars", "dsas"}
"""Move a state by what it is, which no model has a parameter for."""


def build(name: str, evidence: Evidence, folder: Path, **request: object) -> Patch:
    """Build with nothing but the evidence the registry lists, save and load."""
    given = {need: evidence.given[need] for need in find_recipe(name).needs}
    request = {"max_perplexity_increase": 10.0, **request}
    build_patch(
        PatchRequest(intervention=name, **request),
        Evidence(evidence.language_model, given),
        model_id="tiny",
        workspace=Workspace(folder),
    )
    return load_patch(folder / TENSORS_NAME, folder / DESCRIPTION_NAME)


def ask_for(name: str, factor: float) -> dict[str, Any]:
    """Of components how many, by which factor; others find their strength by the budget."""
    needs_number = Need.components in find_recipe(name).needs
    return {"factor": factor, "n_components": 3} if needs_number else {}


def test_a_factor_beside_the_component_tables_own_is_refused(
    evidence: Evidence, tmp_path: Path
) -> None:
    """It would be ignored, and yet key the patch."""
    with pytest.raises(ComponentError, match="beside the component table's own"):
        build("eigenshift", evidence, tmp_path, factor=0.3)
    with pytest.raises(ComponentError, match="beside what the budget allows"):
        build("mean_difference", evidence, tmp_path, factor=0.3)


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_the_registry_says_whether_a_number_is_heeded(
    name: str, evidence: Evidence, tmp_path: Path
) -> None:
    """Another number gives another patch exactly where the entry names `n_components`."""
    tensors = []
    for number in (1, 3):
        (tmp_path / str(number)).mkdir()
        patch = build(name, evidence, tmp_path / str(number), n_components=number)
        tensors.append(list_tensors(patch.edit))
    one, other = tensors
    is_same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert is_same is ("n_components" not in INTERVENTIONS[name].takes)


@torch.inference_mode()
def compute_logits(language_model: LanguageModel) -> torch.Tensor:
    """Logits of two fixed sequences."""
    logits: torch.Tensor = language_model.model(TOKENS).logits
    return logits.clone()


@pytest.mark.parametrize("factor", [0.0, 0.3])
@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_weights_give_the_logits_of_hooks(
    name: str, factor: float, evidence: Evidence, tmp_path: Path
) -> None:
    """Folded into weights, every intervention is what it is as hooks, to 1e-5 relative."""
    model = evidence.language_model
    patch = build(name, evidence, tmp_path, **ask_for(name, factor))
    base = compute_logits(model)
    with run_hooked(model, patch.edit):
        hooked = compute_logits(model)
    with patched_model(model, patch):
        folded = compute_logits(model)
    scale = float(base.abs().max())
    assert float((folded - hooked).abs().max()) < 1e-5 * scale
    assert float((folded - base).abs().max()) > 1e-3 * scale


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_the_base_is_back_afterwards(name: str, evidence: Evidence, tmp_path: Path) -> None:
    """Leaving the patch restores every byte of the model."""
    model = evidence.language_model.model
    before = {key: digest_tensor(value) for key, value in model.named_parameters()}
    with patched_model(evidence.language_model, build(name, evidence, tmp_path)):
        pass
    assert {key: digest_tensor(value) for key, value in model.named_parameters()} == before


@pytest.mark.parametrize("name", sorted(INTERVENTIONS))
def test_only_constants_without_a_place_keep_an_intervention_out_of_the_weights(
    name: str, evidence: Evidence, tmp_path: Path
) -> None:
    """A model without biases can be measured with them by hooks; the patch says why."""
    request = ask_for(name, 0.3) | {"max_perplexity_increase": 0.002}  # not all the way
    patch = build(name, evidence, tmp_path, **request)
    has_biases = "GPT2" in type(evidence.language_model.model).__name__
    if name in ADAPTIVE:
        assert "depends on the state" in str(patch.description.obstacle)
        assert patch.description.tensors == {}
    elif name in NO_HEAD_BIAS or (name in NO_BIAS and not has_biases):
        assert "bias" in str(patch.description.obstacle)
        assert patch.description.tensors == {}
    else:
        assert patch.description.obstacle is None
        assert patch.description.tensors


@pytest.mark.parametrize("name", ["leace", "eigenshift_centered"])
def test_a_norm_cannot_carry_a_shift_along_a_removed_direction(
    name: str, evidence: Evidence, tmp_path: Path
) -> None:
    """With factor 0 nothing in the weights can keep the mean, unless the head has a bias."""
    patch = build(name, evidence, tmp_path, factor=0.0, n_components=3)
    assert patch.description.obstacle is not None


def test_a_factor_of_one_changes_nothing(evidence: Evidence, tmp_path: Path) -> None:
    """At 1 a damped head is the head, byte for byte."""
    model = evidence.language_model
    patch = build("eigenshift", evidence, tmp_path, factor=1.0, n_components=3)
    assert patch.description.base_digest == patch.description.patched_digest
    with patched_model(model, patch):
        assert digest_tensor(model.head_weight) == patch.description.base_digest


def test_evidence_that_is_not_listed_is_not_there(evidence: Evidence) -> None:
    """What an intervention reads must be in its registry entry, or its fingerprint would lie."""
    with pytest.raises(ComponentError, match="registry"):
        find_recipe("leace").load_builder()(Evidence(evidence.language_model), PatchRequest())


def test_an_unknown_intervention_is_refused_with_the_known_ones() -> None:
    """The message lists what there is."""
    with pytest.raises(SettingsError, match=r"expected one of eigenshift, .*found 'magic'"):
        find_recipe("magic")


def test_hooks_leave_no_trace(evidence: Evidence) -> None:
    """After an error inside, no hook is left on the model."""
    model = evidence.language_model
    base = compute_logits(model)
    edit = find_recipe("aura").load_builder()(evidence, PatchRequest()).edit
    assert isinstance(edit, ModelEdit)
    with pytest.raises(RuntimeError, match="midway"), run_hooked(model, edit):
        raise RuntimeError("midway")
    assert torch.equal(compute_logits(model), base)
