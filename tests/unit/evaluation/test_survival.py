"""What is left of a patch, against models whose weights are the rounded ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.base.errors import EvaluationError
from eigenshift.components.head_states import compute_states
from eigenshift.components.table import find_toxic_tokens
from eigenshift.evaluation.likelihood_ratios import DrawnText, measure_log_ratios
from eigenshift.evaluation.stages import SurvivalKey
from eigenshift.evaluation.survival import (
    SaidTexts,
    choose_said,
    gather_material,
    measure_survival,
)
from eigenshift.model.block_formats import choose_stored, round_rows
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.folding import fold_edit, run_hooked
from eigenshift.patches.patching import make_patch, replaced_parameters
from eigenshift.settings import BlockFormat, Form, SamplingSettings
from tests.support.architectures import change_linears, damp_head

PROMPTS = {"a": [5, 9, 40], "b": [77], "c": [12, 13, 14]}
N_SAMPLES, N_TOKENS = 6, 4
LINEAR = "transformer.h.0.mlp.c_proj"

KEY = SurvivalKey(
    arm="ours",
    formats=(BlockFormat.f16, BlockFormat.q4_0),
    is_whole=False,
    max_tokens=16,
    generation=SamplingSettings(n_samples=N_SAMPLES, n_tokens=N_TOKENS, top_p=1.0),
    n_bootstrap=40,
    confidence=0.95,
    seed=0,
    toxic_threshold=0.5,
    max_unscored_share=0.5,
    dtype="float32",
)


def make_said(share: int) -> tuple[pa.Table, pa.Table]:
    """Continuations of made-up tokens, of which every so-manieth is toxic."""
    generator = np.random.default_rng(share)
    rows, scores = [], []
    for prompt_id, prompt in PROMPTS.items():
        for sample in range(N_SAMPLES):
            place = {"prompt_id": prompt_id, "sample_index": sample}
            drawn = generator.integers(1, 250, N_TOKENS).tolist()
            rows.append({**place, "prompt_token_ids": prompt, "token_ids": drawn})
            scores.append({**place, "toxicity_probability": float(sample % share == 0)})
    return (
        pa.Table.from_pylist(rows, schemas.CONTINUATIONS),
        pa.Table.from_pylist(scores, schemas.SCORES),
    )


def make_states(model: LanguageModel, study: pa.Table) -> pa.Table:
    """States before the second token; those of two prompts are toxic."""
    texts = {(row["prompt_id"], row["sample_index"]): row for row in study.to_pylist()}
    wanted = [(key, 1) for key in texts]
    states = compute_states(model, texts, wanted, 256)
    rows = [
        {
            "prompt_id": key[0],
            "sample_index": key[1],
            "step": step,
            "is_toxic": key[0] != "c",
            "token_id": texts[key]["token_ids"][step],
            "state": state,
        }
        for (key, step), state in zip(wanted, states, strict=True)
    ]
    return pa.Table.from_pylist(rows, schemas.HEAD_STATES)


def measure(
    model: LanguageModel, edit: ModelEdit, neutral_texts: list[str], key: SurvivalKey = KEY
) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by form and format."""
    neutral = pa.table(
        {
            "sample_id": [f"s{place}" for place in range(12)],
            "language": ["en"] * 12,
            "text": neutral_texts[:12],
        }
    )
    study, _ = make_said(2)
    said = {
        form: choose_said(*make_said(share), key)
        for form, share in ((Form.base, 2), (Form.merged, 3))
    }
    patch = make_patch(model, edit, model_id="tiny", intervention="test")
    material = gather_material(model, said, neutral, make_states(model, study), study, key)
    rows = measure_survival(model, patch, material, key, tokens_per_batch=64)
    assert pa.Table.from_pylist(rows, schemas.SURVIVAL).schema == schemas.SURVIVAL
    measure.material = material  # type: ignore[attr-defined]
    return {(row["form"], row["format"]): row for row in rows}


@pytest.fixture(scope="module")
def of_head(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of a patch that takes toxic tokens' logits down by 2 along their mean state."""
    states = make_states(tiny_language_model, make_said(2)[0])
    tokens = find_toxic_tokens(states, tiny_language_model.head.vocab)
    values = np.stack(states["state"].to_numpy(zero_copy_only=False))
    mean = torch.from_numpy(values[states["is_toxic"].to_numpy(False)].mean(0)).double()
    left = torch.zeros(tiny_language_model.head.vocab, 1, dtype=torch.float64)
    left[tokens] = -2.0
    right = (mean / mean.square().sum())[:, None]
    edit = ModelEdit(logits=LogitEdit(left, right, torch.zeros(1, dtype=torch.float64)))
    return measure(tiny_language_model, edit, neutral_texts)


def test_unrounded_rates_are_the_scorer_s(
    of_head: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """Half of the base's texts are toxic, a third of the patched model's; the effect is whole."""
    base, patched = of_head["base", "none"], of_head["merged", "none"]
    assert base["toxicity_rate"] == pytest.approx(1 / 2)
    assert patched["toxicity_rate"] == pytest.approx(1 / 3)
    assert (patched["toxicity_effect_left"], patched["token_effect_left"]) == (1.0, 1.0)
    assert patched["kl_to_full"] == base["kl_to_full"] == 0.0
    assert "toxicity_effect_left" not in base  # null in the table
    assert (base["n_effective"], base["covered"]) == (9.0, 1.0)
    assert not base["is_rate_reliable"]  # 9 texts


def test_a_fine_format_leaves_all_and_a_coarse_one_less(
    of_head: dict[tuple[str, str], dict[str, Any]],
) -> None:
    """float16 is told from nothing hardly; in 4 bits something is lost, least by the adapter."""
    for form in ("merged", "lora"):
        fine, coarse = of_head[form, "f16"], of_head[form, "q4_0"]
        assert fine["token_effect_left"] == pytest.approx(1, abs=0.01)
        assert 0 < fine["kl_to_full"] < 1e-5 < coarse["kl_to_full"]
        assert (fine["stored_as"], coarse["stored_as"]) == ("F16", "Q4_0")
    assert of_head["merged", "f16"]["edit_kept"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("is_deep", [False, True])
@torch.inference_mode()
def test_numbers_are_those_of_a_model_with_rounded_weights(
    tiny_language_model: LanguageModel, neutral_texts: list[str], form: Form, is_deep: bool
) -> None:
    """Perplexity, divergence and toxic tokens by plain forward passes; of deep patches too."""
    model = tiny_language_model
    edit = damp_head(model, 0.1)
    if is_deep:
        edit = ModelEdit(edit.head, linears=change_linears(model, [LINEAR]).linears)
    row = measure(model, edit, neutral_texts)[form.value, "q4_0"]
    material = measure.material  # type: ignore[attr-defined]
    folded = fold_edit(model, edit)
    plain = {name: model.model.get_parameter(name).detach() for name in folded}
    values = folded if form is Form.merged else plain
    rounded = {}
    for name, value in values.items():
        turned = value.T.contiguous() if LINEAR in name else value
        found = round_rows(turned, choose_stored(BlockFormat.q4_0, turned.shape[1]))
        rounded[name] = found.T.contiguous() if LINEAR in name else found
    served = (rounded, edit if form is Form.lora else ModelEdit())
    full = ({} if form is Form.base else folded, ModelEdit())

    def predict(parameters: Any, hooked: ModelEdit, token_ids: list[int]) -> torch.Tensor:
        with replaced_parameters(model, parameters), run_hooked(model, hooked):
            logits = model.model(input_ids=torch.tensor([token_ids])).logits[0]
        return torch.log_softmax(logits.double(), -1)

    nll = divergence = n_tokens = 0.0
    for token_ids, n_context in material.neutral:
        found, meant = (predict(*what, token_ids)[n_context - 1 : -1] for what in (served, full))
        targets = torch.tensor(token_ids[n_context:])
        nll -= float(found.gather(1, targets[:, None]).sum())
        divergence += float((meant.exp() * (meant - found)).sum())
        n_tokens += len(targets)
    assert row["perplexity"] == pytest.approx(np.exp(nll / n_tokens), rel=1e-5)
    assert row["kl_to_full"] == pytest.approx(divergence / n_tokens, rel=1e-3)
    texts = {(item["prompt_id"], item["sample_index"]): item for item in material.study.to_pylist()}
    masses = []
    for state in material.positions.to_pylist():
        text = texts[state["prompt_id"], state["sample_index"]]
        token_ids = [*text["prompt_token_ids"], *text["token_ids"][: state["step"]]]
        masses.append(float(predict(*served, token_ids)[-1].exp()[material.toxic_tokens].sum()))
    assert row["toxic_token_probability"] == pytest.approx(np.mean(masses), rel=1e-5)


def test_weights_are_likelihood_ratios_to_the_model_that_spoke(
    tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """A format so fine that an edit is left whole: the base's own words, weighed by hand."""
    model, edit = tiny_language_model, damp_head(tiny_language_model, 0.1)
    measure(model, edit, neutral_texts)
    said: SaidTexts = measure.material.said[Form.base]  # type: ignore[attr-defined]
    (ratios,) = measure_log_ratios(model, said.texts, [edit], KEY.generation, tokens_per_batch=64)
    from eigenshift.evaluation.likelihood_ratios import sum_log_probabilities, trace_texts

    traced = trace_texts(model, said.texts, KEY.generation, tokens_per_batch=64)
    plain = sum_log_probabilities(model, traced, ModelEdit(), KEY.generation, has_drawn=True)
    with replaced_parameters(model, fold_edit(model, edit)):
        own = sum_log_probabilities(model, traced, ModelEdit(), KEY.generation, has_drawn=False)
    np.testing.assert_allclose(own - plain, ratios, atol=1e-4)
    assert all(isinstance(text, DrawnText) for text in said.texts)


def test_without_a_score_nothing_is_measured() -> None:
    """An error that says how many texts there are."""
    rows, scores = make_said(2)
    empty = [{**row, "toxicity_probability": None} for row in scores.to_pylist()]
    with pytest.raises(EvaluationError, match="expected scored continuations, found none among 18"):
        choose_said(rows, pa.Table.from_pylist(empty, schemas.SCORES), KEY)
