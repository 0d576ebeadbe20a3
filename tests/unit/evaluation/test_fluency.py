"""Fluency: perplexity as transformers computes it, all arms from one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift.components.decomposition import decompose_head
from eigenshift.evaluation.fluency import encode_texts, measure_fluency
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.store.workspace import Workspace

MAX_TOKENS = 24


@pytest.fixture
def texts(neutral_texts: list[str]) -> pa.Table:
    """Twelve texts and one that is too short to predict anything in, even after BOS."""
    rows = [*neutral_texts[:8], *neutral_texts[-4:], ""]
    return pa.table(
        {
            "sample_id": [f"s{place:02d}" for place in range(len(rows))],
            "language": ["en"] * len(rows),
            "text": rows,
        }
    )


@pytest.fixture
def patch(tiny_language_model: LanguageModel) -> Patch:
    """A patch that halves the largest five components."""
    decomposition = decompose_head(tiny_language_model.head_module.weight)
    return make_patch(
        tiny_language_model,
        ModelEdit(HeadEdit.scale_directions(decomposition.v[:, :5], 0.5)),
        model_id="tiny",
        intervention="top_sigma",
        component_indices=range(5),
        factor=0.5,
    )


def measure(
    language_model: LanguageModel,
    texts: pa.Table,
    patches: dict[str, Patch | None],
    workspace: Workspace,
    tokens_per_batch: int = 64,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Measure and read back by arm and text."""
    measure_fluency(
        language_model,
        patches,
        encode_texts(language_model, texts, MAX_TOKENS),
        tokens_per_batch=tokens_per_batch,
        workspace=workspace,
    )
    rows = pq.read_table(workspace.path("fluency.parquet")).to_pylist()
    return {(row["arm"], row["sample_id"]): row for row in rows}


def test_likelihoods_equal_transformers_own_loss_one_text_at_a_time(
    tiny_language_model: LanguageModel, texts: pa.Table, patch: Patch, workspace: Workspace
) -> None:
    """Base and patched arm against `labels=` on a single unpadded text."""
    found = measure(tiny_language_model, texts, {"top_sigma": patch}, workspace)
    tokenizer = tiny_language_model.tokenizer
    for (arm, sample_id), row in found.items():
        text = texts["text"][int(sample_id[1:])].as_py()
        tokens = tokenizer(text)["input_ids"][:MAX_TOKENS]
        input_ids = torch.tensor([tokens])
        with (
            torch.inference_mode(),
            patched_model(tiny_language_model, patch if arm == "top_sigma" else None),
        ):
            loss = tiny_language_model.model(input_ids, labels=input_ids).loss
        assert row["n_tokens"] == len(tokens) - 1
        assert row["nll"] == pytest.approx(float(loss) * row["n_tokens"], rel=1e-4)


def test_divergence_and_changed_tokens_follow_their_definitions(
    tiny_language_model: LanguageModel, texts: pa.Table, patch: Patch, workspace: Workspace
) -> None:
    """KL(base || arm) in float64 and argmax changes, from two separate forward passes."""
    row = measure(tiny_language_model, texts, {"top_sigma": patch}, workspace)["top_sigma", "s03"]
    tokenizer = tiny_language_model.tokenizer
    tokens = tokenizer(texts["text"][3].as_py())["input_ids"]
    input_ids = torch.tensor([tokens[:MAX_TOKENS]])
    with torch.inference_mode():
        base = tiny_language_model.model(input_ids).logits[0, :-1].double().log_softmax(-1)
        with patched_model(tiny_language_model, patch):
            arm = tiny_language_model.model(input_ids).logits[0, :-1].double().log_softmax(-1)
    assert row["kl_to_base"] == pytest.approx(float((base.exp() * (base - arm)).sum()), rel=1e-4)
    assert row["n_changed_argmax"] == int((base.argmax(-1) != arm.argmax(-1)).sum())


def test_sums_do_not_depend_on_batches(
    tiny_language_model: LanguageModel, texts: pa.Table, workspace: Workspace
) -> None:
    """One text at a time and all at once give the same likelihoods."""
    one = measure(tiny_language_model, texts, {}, workspace, tokens_per_batch=1)
    many = measure(tiny_language_model, texts, {}, workspace, tokens_per_batch=10_000)
    assert one.keys() == many.keys()
    np.testing.assert_allclose(
        [row["nll"] for row in one.values()], [row["nll"] for row in many.values()], rtol=1e-5
    )


def test_a_text_with_nothing_to_predict_is_counted_not_measured(
    tiny_language_model: LanguageModel, texts: pa.Table, workspace: Workspace
) -> None:
    """The empty text is left out and stands in the artifact's facts."""
    found = measure(tiny_language_model, texts, {}, workspace)
    assert ("base", "s12") not in found
    assert workspace.facts["n_too_short"] == 1


def test_an_arm_without_patch_equals_the_base_exactly(
    tiny_language_model: LanguageModel, texts: pa.Table, workspace: Workspace
) -> None:
    """The A/A arm has zero divergence and no changed token."""
    found = measure(tiny_language_model, texts, {"base_again": None}, workspace)
    again = [row for (arm, _), row in found.items() if arm == "base_again"]
    assert {row["kl_to_base"] for row in again} == {0.0}
    assert {row["n_changed_argmax"] for row in again} == {0}
    assert [row["nll"] for row in again] == [
        row["nll"] for (arm, _), row in found.items() if arm == "base"
    ]


def test_a_text_longer_than_the_models_positions_is_truncated(
    tiny_language_model: LanguageModel, workspace: Workspace
) -> None:
    """Real corpora hold such texts: they are measured as far as the model can read."""
    text = "The green garden was open. " * 60
    table = pa.table({"sample_id": ["long"], "language": ["en"], "text": [text]})
    encoded = encode_texts(tiny_language_model, table, 4096)
    measure_fluency(tiny_language_model, {}, encoded, tokens_per_batch=64, workspace=workspace)
    (row,) = pq.read_table(workspace.path("fluency.parquet")).to_pylist()
    assert row["n_tokens"] == 63
