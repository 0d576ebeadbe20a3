"""One suite over every architecture: the head, the formula, folding, round trips, exports.

The reference is float64 arithmetic on the state that was captured at the head, or the same model
with hooks; each runs on tiny random models built from configuration.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.base.errors import ComponentError, FoldingError
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.exporting.checks import check_files, check_reloaded, measure_patched
from eigenshift.exporting.lora import UNTIED_FOLDER, write_lora
from eigenshift.exporting.merged import write_merged
from eigenshift.model.forward import capture_head_states
from eigenshift.model.heads import HeadDescription, digest_tensor
from eigenshift.model.layers import fuse_activations
from eigenshift.model.loading import LanguageModel, forget_models, load_model, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit, UnitEdit
from eigenshift.patches.folding import fold_edit, run_hooked
from eigenshift.patches.interventions.linear_act import list_norms
from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    load_patch,
    make_patch,
    patched_model,
    save_patch,
)
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME
from eigenshift.settings import ModelSettings
from tests.support.architectures import (
    ARCHITECTURES,
    MORE,
    VOCAB,
    StubTokenizer,
    change_linears,
    damp_head,
    list_mlp_layers,
    make_architecture,
    make_random_model,
    scale_units,
)

TOKENS = (torch.arange(24).reshape(2, 12) * 3 + 4) % VOCAB
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@cache
def wrap(name: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model ready to run, shared by the tests: leave it as you found it."""
    model = make_architecture(name).to(dtype)
    return wrap_model(model, StubTokenizer(), model_id=name, digest="d")


def describe(language_model: LanguageModel, edit: ModelEdit) -> Patch:
    """The patch of an edit."""
    return make_patch(language_model, edit, model_id=language_model.id, intervention="test")


@torch.inference_mode()
def run(model: Any) -> torch.Tensor:
    """Logits of the test's tokens, float64."""
    return model(input_ids=TOKENS, use_cache=False).logits.double()


def run_patched(language_model: LanguageModel, patch: Patch) -> torch.Tensor:
    """Logits with a patch folded into the weights."""
    with patched_model(language_model, patch):
        return run(language_model.model)


def compute_reference(
    head: HeadDescription, states: np.ndarray, weight: np.ndarray, bias: np.ndarray | float
) -> np.ndarray:
    """What the architecture does with its head's input, written out in float64."""
    logits = (states @ weight.T + bias) * head.logit_scale
    if head.logit_softcap is None:
        return logits
    return head.logit_softcap * np.tanh(logits / head.logit_softcap)


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest logit."""
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@EVERY
def test_the_head_is_what_the_architecture_says(name: str) -> None:
    """Tying, what precedes the head, its bias, multiplier and soft cap are found by the probe."""
    head, known = wrap(name).head, ARCHITECTURES[name]
    assert (head.is_tied, head.preceding_module) == (known.is_tied, known.preceding)
    assert (head.has_bias, head.logit_softcap) == (known.has_bias, known.softcap)
    assert (head.logit_scale, head.hidden, head.vocab) == (known.scale, known.width, VOCAB)


@EVERY
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_patched_logits_are_the_formula(name: str, dtype: torch.dtype) -> None:
    """Logits = h (U diag(sigma') V^T)^T in float64 from the captured h, in three precisions."""
    language_model = wrap(name, dtype)
    head = language_model.head_module
    with torch.inference_mode(), capture_head_states(language_model) as captured:
        language_model.model(input_ids=TOKENS, use_cache=False)
    u, sigma, vt = np.linalg.svd(head.weight.double().numpy(), full_matrices=False)
    sigma[[0, 3]] *= 0.25
    bias = 0.0 if head.bias is None else head.bias.double().numpy()
    states = captured[0].double().numpy()
    expected = compute_reference(language_model.head, states, u * sigma @ vt, bias)
    found = run_patched(language_model, describe(language_model, damp_head(language_model, 0.25)))
    assert_near(found, torch.from_numpy(expected), TOLERANCES[dtype])
    assert not torch.allclose(found, run(language_model.model), rtol=1e-2)


@EVERY
def test_a_folded_head_edit_equals_the_hooked_one(name: str) -> None:
    """Without a shift the head's weight holds it, whatever follows the head."""
    language_model = wrap(name)
    edit = damp_head(language_model, 0.25)
    with run_hooked(language_model, edit):
        hooked = run(language_model.model)
    assert_near(run_patched(language_model, describe(language_model, edit)), hooked, 1e-5)


@EVERY
def test_a_folded_shift_equals_the_hooked_one_or_is_refused(name: str) -> None:
    """A constant goes into the head's bias or that of the norm before it; where neither is, no."""
    language_model = wrap(name)
    edit = damp_head(language_model, 0.25, shift=0.7)
    patch = describe(language_model, edit)
    with run_hooked(language_model, edit):
        hooked = run(language_model.model)
    if ARCHITECTURES[name].folds_shift:
        assert patch.description.obstacle is None
    else:
        assert "found neither, so a shift of the logits has no place" in patch.description.obstacle
        with pytest.raises(FoldingError, match="has no place in the weights"):
            apply_patch(language_model, patch)
    assert_near(run_patched(language_model, patch), hooked, 1e-5)


@EVERY
def test_folded_units_equal_the_hooked_ones(name: str) -> None:
    """Scaled outputs of up, gate and down projections, biases included."""
    language_model = wrap(name)
    layers = list_mlp_layers(language_model)
    assert len(layers) == 2 * ARCHITECTURES[name].units
    if not layers:
        return
    edit = scale_units(language_model, layers)
    with run_hooked(language_model, edit):
        hooked = run(language_model.model)
    found = run_patched(language_model, describe(language_model, edit))
    assert_near(found, hooked, 1e-5)
    assert not torch.allclose(found, run(language_model.model), rtol=1e-2)


@EVERY
def test_folded_norms_equal_the_hooked_ones(name: str) -> None:
    """Gains w and 1 + w alike; with a shift where the norm has a bias, else refused."""
    language_model = wrap(name)
    norms = list_norms(language_model)
    assert norms
    has_bias = getattr(language_model.model.get_submodule(norms[0]), "bias", None) is not None
    edit = scale_units(language_model, norms, shift=0.3 if has_bias else 0.0)
    with run_hooked(language_model, edit):
        hooked = run(language_model.model)
    assert_near(run_patched(language_model, describe(language_model, edit)), hooked, 1e-5)
    if not has_bias:
        shifted = describe(language_model, scale_units(language_model, norms, shift=0.3))
        assert "expected a bias to hold a shift, found none" in shifted.description.obstacle


@EVERY
def test_generation_with_a_patch(name: str) -> None:
    """`generate` with its cache draws the tokens that the hooked model's full passes rank first."""
    language_model = wrap(name)
    edit = damp_head(language_model, 0.25)
    prompt = TOKENS[:, :5]
    with patched_model(language_model, describe(language_model, edit)):
        found = language_model.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
        )
    expected = prompt
    with run_hooked(language_model, edit), torch.inference_mode():
        for _ in range(4):
            logits = language_model.model(input_ids=expected, use_cache=False).logits
            expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, expected)


@EVERY
def test_a_patch_file_is_applied_and_undone(name: str, tmp_path: Path) -> None:
    """Saved, loaded, applied for good, undone: the base's bytes and tying are back."""
    language_model = wrap(name)
    model, head = language_model.model, language_model.head_module
    before = {key: digest_tensor(value) for key, value in model.state_dict().items()}
    save_patch(describe(language_model, damp_head(language_model, 0.0)), tmp_path)
    patch = load_patch(tmp_path / TENSORS_NAME, tmp_path / DESCRIPTION_NAME)
    embedding = model.get_input_embeddings().weight
    embedding_before = digest_tensor(embedding)
    applied = apply_patch(language_model, patch)
    assert digest_tensor(head.weight) == patch.description.patched_digest
    assert digest_tensor(model.get_input_embeddings().weight) == embedding_before
    applied.undo()
    assert {key: digest_tensor(value) for key, value in model.state_dict().items()} == before
    assert (head.weight is embedding) == ARCHITECTURES[name].is_tied


@EVERY
def test_a_merged_export_round_trip(name: str, tmp_path: Path) -> None:
    """Streamed from the files and loaded by plain transformers: the patched logits."""
    from transformers import AutoModelForCausalLM

    language_model = wrap(name)
    (tmp_path / "out").mkdir()
    language_model.model.save_pretrained(tmp_path / "base")
    units = scale_units(language_model, list_mlp_layers(language_model)).units
    linears = change_linears(language_model, list(list_writers(language_model.model))).linears
    edit = ModelEdit(damp_head(language_model, 0.0).head, units, linears)
    patch = describe(language_model, edit)
    base = open_patched_base(tmp_path / "base", patch, "float32")
    written = write_merged(base, tmp_path / "out")
    assert written == {key: item.patched for key, item in patch.description.tensors.items()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert_near(run(model), run_patched(language_model, patch), 1e-6)
    assert model.config.tie_word_embeddings is False
    for key, value in language_model.model.state_dict().items():
        if key not in written:
            assert torch.equal(model.state_dict()[key], value), key


@EVERY
def test_a_lora_export_round_trip(name: str, tmp_path: Path) -> None:
    """PEFT gives the patched logits from the adapter, and merged; a tied head is untied first."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    language_model = wrap(name)
    (tmp_path / "out").mkdir()
    language_model.model.save_pretrained(tmp_path / "base")
    patch = describe(language_model, damp_head(language_model, 0.25))
    expected = run_patched(language_model, patch)
    base = open_patched_base(tmp_path / "base", patch, "float32")
    write_lora(base, tmp_path / "out", model_id=name, unties=True)
    is_tied = ARCHITECTURES[name].is_tied
    source = tmp_path / "out" / UNTIED_FOLDER if is_tied else tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(source)
    adapted = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    assert_near(run(adapted), expected, 1e-5)
    merged = adapted.merge_and_unload()
    assert_near(run(merged), expected, 1e-5)
    base_embedding = language_model.model.get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, base_embedding)


# Files of several shards, in low precision


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_sharded_checkpoint_in_low_precision(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Several files, loaded as stored: the export has the run's bits, all else is copied."""
    from transformers import AutoModelForCausalLM

    (tmp_path / "out").mkdir()
    wrap(name, dtype).model.save_pretrained(tmp_path / "base", max_shard_size="6KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")  # keeps some buffers wider
    language_model = wrap_model(loaded, StubTokenizer(), model_id=name, digest="d")
    patch = describe(language_model, damp_head(language_model, 0.25))
    base = open_patched_base(tmp_path / "base", patch, "auto")
    written = write_merged(base, tmp_path / "out")
    check_files(base, tmp_path / "out", written)
    assert base.checkpoint.index is not None
    (digest,) = written.values()
    assert digest == patch.description.patched_digest
    shards = {path.name: path.read_bytes() for path in (tmp_path / "base").glob("*.safetensors")}
    changed = [
        shard
        for shard, content in shards.items()
        if (tmp_path / "out" / shard).read_bytes() != content
    ]
    assert len(changed) == (0 if language_model.head.is_tied else 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    fuse_activations(model)  # as the base's are
    assert torch.equal(run(model), run_patched(language_model, patch))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_further_architectures(name: str, tmp_path: Path) -> None:
    """Folded equals hooked, and the export of several files gives the patched logits."""
    model = make_random_model(name, MORE[name])
    language_model = wrap_model(model, StubTokenizer(), model_id=name, digest="d")
    units = scale_units(language_model, list_mlp_layers(language_model)).units
    linears = change_linears(language_model, list(list_writers(model))).linears
    edit = ModelEdit(damp_head(language_model, 0.25).head, units, linears)
    patch = describe(language_model, edit)
    with run_hooked(language_model, edit):
        hooked = run(model)
    assert_near(run_patched(language_model, patch), hooked, 1e-5)
    (tmp_path / "out").mkdir()
    model.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    base = open_patched_base(tmp_path / "base", patch, "float32")
    written = write_merged(base, tmp_path / "out")
    check_files(base, tmp_path / "out", written)
    measured = measure_patched(language_model, patch)
    check_reloaded(tmp_path / "out", measured, written, unties=base.is_tied)


# Quantised trunks (bitsandbytes, which runs on the CPU)


@pytest.fixture(scope="module")
def quantised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose trunk is stored in 8 bits."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("quantised")
    make_architecture("llama").save_pretrained(folder / "full")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "full",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.float32,
    )
    model.save_pretrained(folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def quantised(quantised_folder: Path) -> LanguageModel:
    """The same, loaded."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(quantised_folder)
    return wrap_model(model, StubTokenizer(), model_id="quantised", digest="d")


def test_a_quantised_trunk_leaves_the_head_as_it_is(quantised: LanguageModel) -> None:
    """The trunk is in int8, the head in floating point with the unquantised model's bytes."""
    layer = quantised.model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.weight.dtype == torch.int8
    assert quantised.head.dtype == torch.float32
    assert torch.equal(quantised.head_weight, make_architecture("llama").lm_head.weight)


def test_a_patch_on_a_quantised_trunk(
    quantised: LanguageModel, quantised_folder: Path, tmp_path: Path
) -> None:
    """Folded equals hooked; exported, every other tensor keeps its bytes, and it loads again."""
    from transformers import AutoModelForCausalLM

    edit = damp_head(quantised, 0.25)
    patch = describe(quantised, edit)
    with run_hooked(quantised, edit):
        hooked = run(quantised.model)
    expected = run_patched(quantised, patch)
    assert_near(expected, hooked, 1e-5)
    base = open_patched_base(quantised_folder, patch, "auto")
    check_files(base, tmp_path, write_merged(base, tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert model.get_submodule("model.layers.0.mlp.up_proj").weight.dtype == torch.int8
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_quantised_weights_are_loaded_and_exported(
    bits: int, dtype: str, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """From settings to an export; where the quantiser keeps its own precision, that is measured."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    sizes = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}  # blocks of 4-bit codes
    model = make_architecture("llama", vocab_size=len(tiny_tokenizer), **sizes)
    model.save_pretrained(tmp_path / "full")
    configuration = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    stored = AutoModelForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=configuration, dtype=torch.float32
    )
    stored.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    forget_models()
    settings = ModelSettings(id=str(tmp_path / "base"), dtype=dtype)
    language_model = load_model(settings, "cpu")
    forget_models()
    patch = describe(language_model, damp_head(language_model, 0.25))
    base = open_patched_base(tmp_path / "base", patch, dtype)
    (tmp_path / "out").mkdir()
    written = write_merged(base, tmp_path / "out")
    check_files(base, tmp_path / "out", written)
    measured = measure_patched(language_model, patch)
    check_reloaded(tmp_path / "out", measured, written, unties=False)
    assert written["lm_head.weight"] == patch.description.patched_digest


# What is not supported is refused with a reason


def test_units_of_quantised_layers_are_refused(quantised: LanguageModel) -> None:
    """Their weights are codes; the patch can only be measured with hooks."""
    edit = scale_units(quantised, ["model.layers.0.mlp.up_proj"])
    patch = describe(quantised, edit)
    assert (
        "expected a module with a floating-point weight, found none" in patch.description.obstacle
    )
    with run_hooked(quantised, edit):
        hooked = run(quantised.model)
    assert torch.equal(run_patched(quantised, patch), hooked)


def test_units_of_experts_are_refused() -> None:
    """Mixtral's experts are one module with weights of three dimensions."""
    language_model = wrap("mixtral")
    edit = ModelEdit(units={"model.layers.0.mlp.experts": UnitEdit.scale_units(np.ones(4))})
    with pytest.raises(FoldingError, match="expected a module with a floating-point weight"):
        fold_edit(language_model, edit)


def test_units_of_other_modules_are_refused() -> None:
    """An embedding has no output units that a scale could go into; nor does a wrong count fit."""
    language_model = wrap("llama")
    for name, n_units, message in (
        ("model.embed_tokens", 16, "found Embedding"),
        ("model.layers.0.mlp.up_proj", 7, "expected a linear layer or a norm with 7 units"),
    ):
        edit = ModelEdit(units={name: UnitEdit.scale_units(np.full(n_units, 0.5))})
        with pytest.raises(FoldingError, match=message):
            fold_edit(language_model, edit)


def test_a_shift_that_a_removed_direction_would_carry_is_refused() -> None:
    """A norm's bias before the head is damped with the state: at factor 0 nothing arrives."""
    language_model = wrap("gpt2")
    patch = describe(language_model, damp_head(language_model, 0.0, shift=0.7))
    assert "cannot carry the shift" in patch.description.obstacle


def test_an_edit_of_another_width_is_refused() -> None:
    """OPT's head is narrower than its trunk; a patch of the trunk's width does not fit."""
    with pytest.raises(ComponentError, match="The patch is for another model"):
        fold_edit(wrap("opt"), damp_head(wrap("llama"), 0.5))
