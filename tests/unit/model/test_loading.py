"""What `eigenshift.model.loading` and `eigenshift.model.heads` promise."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from eigenshift.base import schemas
from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.components.labelled_text import encode_faithfully
from eigenshift.generation.continuations import encode_prompts
from eigenshift.model import loading
from eigenshift.model.description import describe_model
from eigenshift.model.devices import resolve_device
from eigenshift.model.encoding import encode_text
from eigenshift.model.files import identify_model
from eigenshift.model.forward import capture_head_states
from eigenshift.model.heads import describe_head
from eigenshift.model.layers import get_trunk, list_layers
from eigenshift.model.loading import LanguageModel, forget_models, load_model, use_model, wrap_model
from eigenshift.settings import GenerationSettings, ModelSettings
from tests.support.architectures import MORE, make_random_model

VOCAB = 96
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
IDS = {key: SMALL[key] for key in ("vocab_size", "initializer_range")}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {**IDS, **GPT}),
    "llama": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2Config", {**LLAMA, "head_dim": 8, "final_logit_softcapping": 5.0}),
    "cohere": ("CohereConfig", {**LLAMA, "logit_scale": 0.25}),
    "gpt_neox": ("GPTNeoXConfig", {**SMALL, "intermediate_size": 24}),
    "opt": ("OPTConfig", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8}),
    "gptj": ("GPTJConfig", {**IDS, **GPT, "rotary_dim": 4}),
    "qwen2": ("Qwen2Config", LLAMA),
    "granite": ("GraniteConfig", {**LLAMA, "logits_scaling": 4.0}),
    "falcon_h1": (
        "FalconH1Config",
        {
            **LLAMA,
            "lm_head_multiplier": 0.3,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
}


class StubTokenizer:
    """The little of a tokenizer that `wrap_model` looks at."""

    pad_token_id = 0

    def __len__(self) -> int:
        return VOCAB


def make_model(name: str, **changes: Any) -> Any:
    """A seeded random model; biases and norms are random too, so that none goes unnoticed."""
    class_name, values = CONFIGS[name]
    config = getattr(transformers, class_name)(**{**values, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model.eval()


def copy_model(folder: Path, target: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(folder, target)
    return target


# Heads


@pytest.mark.parametrize("name", CONFIGS)
def test_states_before_the_head_give_the_models_logits(name: str) -> None:
    """compute_logits of the captured states equals the model's logits to 1e-5."""
    language_model = wrap_model(make_model(name), StubTokenizer(), model_id=name, digest="d")
    input_ids = torch.arange(24).reshape(2, 12) * 3 + 4
    with torch.no_grad(), capture_head_states(language_model) as captured:
        logits = language_model.model(input_ids=input_ids).logits
    (states,) = captured
    head = language_model.head_module
    found = language_model.head.compute_logits(states, head.weight, head.bias)
    assert states.shape == (2, 12, language_model.head.hidden)
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", {"is_tied": True, "has_bias": False, "preceding_module": "transformer.ln_f"}),
        ("llama", {"is_tied": False, "logit_scale": 1.0, "preceding_module": "model.norm"}),
        ("gemma2", {"is_tied": True, "logit_softcap": 5.0, "logit_scale": 1.0}),
        ("cohere", {"is_tied": True, "logit_scale": 0.25, "logit_softcap": None}),
        ("opt", {"hidden": 8, "preceding_module": "model.decoder.project_out"}),
        ("gptj", {"is_tied": False, "has_bias": True}),
        ("granite", {"logit_scale": 0.25}),
        ("falcon_h1", {"logit_scale": 0.3}),
    ],
)
def test_a_head_is_described(name: str, expected: dict[str, Any]) -> None:
    """Tying, bias, scale, soft cap and what precedes the head are found."""
    head = describe_head(make_model(name))
    assert {key: getattr(head, key) for key in expected} == expected
    assert head.vocab == VOCAB


def test_a_head_is_described_in_bfloat16() -> None:
    """The probe allows for the rounding of low precision."""
    head = describe_head(make_model("gemma2").to(torch.bfloat16))
    assert (head.dtype, head.logit_softcap) == (torch.bfloat16, 5.0)


def test_the_probe_leaves_no_hooks() -> None:
    """After describing a head the model is as before."""
    model = make_model("gpt2")
    describe_head(model)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_trunk_is_refused() -> None:
    """A model without output embeddings has no head to patch."""
    with pytest.raises(ModelError, match="expected an output head, found none"):
        describe_head(make_model("gpt2").base_model)


def test_a_quantised_head_is_refused() -> None:
    """A subclass of nn.Linear with a forward of its own is not a plain head."""

    class QuantisedLinear(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states).round()

    model = make_model("llama")
    model.lm_head = QuantisedLinear(16, VOCAB)
    with pytest.raises(ModelError, match=r"plain nn\.Linear.*found QuantisedLinear"):
        describe_head(model)


def test_an_unknown_change_of_the_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does something unknown after its head is not approximated."""
    model = make_model("llama")
    forward = model.forward

    def add_something(**arguments: Any) -> Any:
        output = forward(**arguments)
        output.logits = output.logits + 0.01 * output.logits**2
        return output

    monkeypatch.setattr(model, "forward", add_something)
    with pytest.raises(ModelError, match="changes its logits in a way unknown"):
        describe_head(model)


def test_a_cut_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of another width than the head are a shape mismatch."""
    model = make_model("llama")
    forward = model.forward

    def cut(**arguments: Any) -> Any:
        output = forward(**arguments)
        output.logits = output.logits[..., :90]
        return output

    monkeypatch.setattr(model, "forward", cut)
    with pytest.raises(ModelError, match=r"expected logits of shape \(2, 5, 96\)"):
        describe_head(model)


def test_an_encoder_is_refused() -> None:
    """BERT loads as a causal language model, but its states see later tokens."""
    config = transformers.BertConfig(**SMALL, intermediate_size=24)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match="expected a causal language model"):
        describe_head(model)


# Layers


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_found_in_models_and_trunks(name: str) -> None:
    """The blocks are the same whether one asks the model or its trunk."""
    model = make_model(name)
    blocks = list_layers(model)
    assert len(blocks) == 2
    assert list_layers(get_trunk(model)) == blocks


# Identity


def test_identity_does_not_depend_on_place_or_time(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A copy elsewhere, touched later and with a README beside it, has the same digest."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("A model.")
    first = identify_model(ModelSettings(id=str(tiny_model_folder)))
    assert identify_model(ModelSettings(id=str(copy))).digest == first.digest
    assert first.revision is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_identity_depends_on_content(tiny_model_folder: Path, tmp_path: Path, name: str) -> None:
    """Weights, configuration and tokenizer each change the digest, also after a first look."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    before = identify_model(ModelSettings(id=str(copy))).digest
    path = copy / name
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        tensors = load_file(path)
        tensors["transformer.ln_f.bias"][0] += 1
        save_file(tensors, path, metadata={"format": "pt"})
    assert identify_model(ModelSettings(id=str(copy))).digest != before


def test_identity_does_not_load_weights(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identifying a model reads its files only."""
    monkeypatch.setattr(loading, "choose_auto_class", None)
    assert len(identify_model(ModelSettings(id=str(tiny_model_folder))).digest) == 64


def test_a_hub_snapshot_tells_its_commit(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A folder in the hub's cache layout has the commit as its revision."""
    commit = "0123456789" * 4
    copy = copy_model(tiny_model_folder, tmp_path / "models--a--b" / "snapshots" / commit)
    assert identify_model(ModelSettings(id=str(copy))).revision == commit


def test_a_hub_id_is_fetched_at_its_revision(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is no folder goes to the hub, without pickled files."""
    commit = "ab" * 20
    copy = copy_model(tiny_model_folder, tmp_path / "snapshots" / commit)
    calls = []

    def download(model_id: str, **arguments: Any) -> str:
        calls.append((model_id, arguments))
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    identity = identify_model(ModelSettings(id="owner/name", revision="main"))
    assert identity.revision == commit
    (model_id, arguments), *_ = calls
    assert (model_id, arguments["revision"]) == ("owner/name", "main")
    assert not any("bin" in pattern for pattern in arguments["allow_patterns"])


def test_a_remote_folder_has_the_digest_of_the_local_one(tiny_model_folder: Path) -> None:
    """Any fsspec URL works as a model folder."""
    memory = fsspec.filesystem("memory")
    for path in tiny_model_folder.iterdir():
        memory.pipe_file(f"/models/tiny/{path.name}", path.read_bytes())
    remote = identify_model(ModelSettings(id="memory://models/tiny"))
    assert remote.digest == identify_model(ModelSettings(id=str(tiny_model_folder))).digest


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("./no/such/folder", "found no such folder"),
        ("memory://no/such", "found no such folder"),
        ("not a model", "neither"),
    ],
)
def test_a_missing_folder_is_named(model_id: str, message: str) -> None:
    """The error says what was looked for."""
    with pytest.raises(ModelError, match=message) as caught:
        identify_model(ModelSettings(id=model_id))
    assert str(caught.value).startswith(model_id)


def test_an_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hub the error says both what was looked for and what to do."""

    def fail(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"looked for a folder.*give a folder"):
        identify_model(ModelSettings(id="owner/name"))


def test_pickled_weights_are_refused_unopened(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A folder with only pickled weights is refused with a remedy."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin.*save_pretrained"):
        identify_model(ModelSettings(id=str(copy)))


def test_an_adapter_is_not_a_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Adapter weights alone are named as such."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="found an adapter"):
        identify_model(ModelSettings(id=str(copy)))


def test_cut_weights_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A safetensors file shorter than its header says is damaged."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="whole safetensors file"):
        load_model(ModelSettings(id=str(copy)), device="cpu")


def test_a_missing_shard_is_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    """All files of the index must be there."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="40KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert load_model(ModelSettings(id=str(copy)), device="cpu").head.is_tied
    shards[-1].unlink()
    with pytest.raises(ModelError, match=shards[-1].name):
        identify_model(ModelSettings(id=str(copy)))


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    """An empty folder is not a model."""
    with pytest.raises(ModelError, match=r"expected config\.json"):
        identify_model(ModelSettings(id=str(tmp_path)))


# Loading


def test_a_model_is_loaded_once(tiny_model_folder: Path) -> None:
    """The same settings give the same object, and another precision replaces it."""
    settings = ModelSettings(id=str(tiny_model_folder))
    first = load_model(settings, device="cpu")
    assert load_model(settings, device="cpu") is first
    half = load_model(ModelSettings(id=settings.id, dtype="bfloat16"), device="cpu")
    assert half.head.dtype == torch.bfloat16
    assert len(loading._loaded) == loading.MAX_LOADED_MODELS
    forget_models()
    assert load_model(settings, device="cpu") is not first


def test_a_loaded_model_is_ready(tiny_language_model: loading.LanguageModel) -> None:
    """Eval mode, no gradients, a pad token, and the head's weight at hand."""
    assert not tiny_language_model.model.training
    assert not tiny_language_model.head_weight.requires_grad
    assert tiny_language_model.tokenizer.pad_token_id is not None
    assert tiny_language_model.head_weight.shape == (
        tiny_language_model.head.vocab,
        tiny_language_model.head.hidden,
    )


def test_capturing_holds_the_lock(tiny_language_model: loading.LanguageModel) -> None:
    """While one thread captures, no other can take the model's lock; its own thread can."""
    taken = []

    def try_lock() -> None:
        taken.append(tiny_language_model.lock.acquire(blocking=False))

    with capture_head_states(tiny_language_model), tiny_language_model.lock:
        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()
    assert taken == [False]


def test_a_model_in_use_is_ones_own(tiny_model_folder: Path) -> None:
    """use_model keeps other threads out until the block ends, and lets its own thread capture."""
    settings = ModelSettings(id=str(tiny_model_folder))
    order = []

    def use_later() -> None:
        with use_model(settings, device="cpu"):
            order.append("second")

    with use_model(settings, device="cpu") as language_model:
        thread = threading.Thread(target=use_later)
        thread.start()
        with capture_head_states(language_model) as captured:
            language_model.model(input_ids=torch.ones((1, 3), dtype=torch.long))
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert captured[0].shape == (1, 3, 32)


def test_a_model_is_described_in_json(tiny_model_folder: Path) -> None:
    """Identity, size and head are plain values."""
    settings = ModelSettings(id=str(tiny_model_folder))
    description = describe_model(load_model(settings, "cpu"), identify_model(settings))
    assert json.loads(json.dumps(description)) == description
    assert description["n_layers"] == 2
    assert description["head"]["dtype"] == "float32"
    assert description["digest"] == identify_model(settings).digest


def test_a_trunk_with_a_missing_head_is_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Weights that are not in the files would be random: refused, not initialised."""
    make_model("llama").base_model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"1 missing.*lm_head\.weight"):
        load_model(ModelSettings(id=str(tmp_path)), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "expected a causal language model"),
        ({"model_type": "t5"}, "expected a causal language model, found an encoder-decoder"),
        ({"model_type": "bert"}, "expected a causal language model, found an encoder"),
        (
            {"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config"}},
            "needs its author's code",
        ),
        ({"model_type": "no-such-type"}, "that transformers can load"),
    ],
)
def test_other_models_are_refused(
    tiny_model_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Encoders, encoder-decoders, remote code and unknown types each have their own reason."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    document = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**document, **changes}))
    with pytest.raises(ModelError, match=message):
        load_model(ModelSettings(id=str(copy)), device="cpu")


def test_a_model_that_divides_its_weights_when_it_runs_is_kept_from_it(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """RWKV's later blocks: the logits it has by itself, with the weights of the files."""
    values = MORE["RwkvConfig"] | {
        "vocab_size": len(tiny_tokenizer),
        "num_hidden_layers": 5,
        "rescale_every": 2,
    }
    make_random_model("RwkvConfig", values).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loading.forget_models()
    model = loading.load_model(ModelSettings(id=str(tmp_path)), "cpu").model
    loading.forget_models()
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.arange(12)[None] * 7 + 3
    with torch.inference_mode():
        found, expected = (
            item(input_ids=tokens, use_cache=False).logits for item in (model, alone)
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    name = "rwkv.blocks.4.feed_forward.value.weight"
    assert torch.equal(model.get_parameter(name), stored[name])
    assert not torch.equal(alone.get_parameter(name), stored[name])


def test_a_model_without_tokenizer_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    """No empty tokenizer is made up."""
    copy = copy_model(tiny_model_folder, tmp_path / "copy")
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match="expected tokenizer files"):
        load_model(ModelSettings(id=str(copy)), device="cpu")


def test_an_unknown_device_is_a_settings_error() -> None:
    """The device is checked before anything is loaded."""
    with pytest.raises(SettingsError, match=r"execution\.device.*'abacus'"):
        resolve_device("abacus")


def test_apple_gpus_are_refused_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no float64, which several stages compute in: `auto` takes the CPU there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(SettingsError, match=r"execution\.device.*float64.*auto or cpu"):
        resolve_device("mps")


@pytest.mark.parametrize("reads", ["text", "labelled text", "prompts"])
def test_tokens_beyond_the_head_are_refused_when_met(
    reads: str, tiny_language_model: LanguageModel, neutral_texts: list[str]
) -> None:
    """With the model's name, not with an index error of the embedding, on whatever it reads."""
    language_model = replace(tiny_language_model, vocab=50)
    prompt = {"prompt_id": "p", "part": "evaluation", "language": "en", "prompt": neutral_texts[0]}
    prompts = pa.Table.from_pylist([prompt], schema=schemas.PROMPTS)
    encode: dict[str, Callable[[], object]] = {
        "text": lambda: encode_text(language_model, neutral_texts[0], 32).token_ids,
        "labelled text": lambda: encode_faithfully(language_model, neutral_texts[0]),
        "prompts": lambda: encode_prompts(language_model, prompts, GenerationSettings()),
    }
    with pytest.raises(ModelError, match="expected token ids below 50"):
        encode[reads]()
