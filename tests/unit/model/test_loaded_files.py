"""What decides which model transformers loads is in the digest, or is refused with its reason."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils import peft_utils

from eigenshift.base.errors import ModelError
from eigenshift.model import files, loading
from eigenshift.model.files import identify_model
from eigenshift.model.loaded_files import (
    ADAPTER_CONFIG_NAME,
    FURTHER_TEMPLATES,
    TOKENIZER_NAMES,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from eigenshift.model.loading import forget_models, load_model
from eigenshift.settings import ModelSettings
from tests.support.architectures import (
    ARCHITECTURES,
    MORE,
    make_architecture,
    make_random_model,
)

_opened: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        _opened.append(arguments[0])


@contextmanager
def watching() -> Iterator[list[str]]:
    """Names of all files that Python opens in the block."""
    global _opened
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


sys.addaudithook(_listen)  # cannot be taken away again, hence the switch


@pytest.fixture
def copy(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny GPT-2 in a folder of its own."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


def identify(folder: Path) -> files.ModelIdentity:
    """Which model a folder holds."""
    return identify_model(ModelSettings(id=str(folder)))


def edit_json(path: Path, **changes: Any) -> None:
    """Change a JSON document's entries."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_adapter(folder: Path) -> None:
    """Put a LoRA beside the model, as a trainer does."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(folder)


# Adapters


def test_an_adapter_beside_a_model_is_refused(copy: Path) -> None:
    """Transformers would put it onto the model, so it is not the model of the digest."""
    save_adapter(copy)
    assert AutoModelForCausalLM.from_pretrained(copy).peft_config  # what it protects from
    with pytest.raises(ModelError, match=r"adapter beside it .*merge_and_unload.*new folder"):
        identify(copy)


def test_a_hub_repository_with_an_adapter_is_refused_too(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's configuration is fetched by the client, so an id is what its folder is."""
    save_adapter(copy)

    def download(_: str, **arguments: Any) -> str:
        for path in list(copy.iterdir()):
            ignored = any(fnmatch(path.name, item) for item in arguments["ignore_patterns"])
            if ignored or not any(fnmatch(path.name, p) for p in arguments["allow_patterns"]):
                path.unlink()
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match="adapter beside it"):
        identify_model(ModelSettings(id="owner/name"))
    assert not (copy / "adapter_model.safetensors").exists()


def test_an_adapter_alone_is_named(copy: Path) -> None:
    """A folder of an adapter is no folder without a configuration."""
    save_adapter(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match="not a model by itself"):
        identify(copy)


def test_the_adapters_file_has_the_name_transformers_looks_for() -> None:
    """Another name in a later release would pass unseen."""
    assert ADAPTER_CONFIG_NAME == peft_utils.ADAPTER_CONFIG_NAME


# Other weights, other configurations


def write_index(folder: Path, name: str) -> None:
    """Make the folder a sharded checkpoint whose weights are under a name."""
    weights = folder / WEIGHTS_NAME
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
    (folder / WEIGHTS_INDEX_NAME).write_text(json.dumps(index))
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    weights.rename(target)


def name_other_weights(folder: Path) -> None:
    """Weights that the configuration names."""
    shutil.copy(folder / WEIGHTS_NAME, folder / "other.safetensors")
    edit_json(folder / "config.json", transformers_weights="other.safetensors")


def name_other_configuration(folder: Path) -> None:
    """A configuration for each version of transformers."""
    shutil.copy(folder / "config.json", folder / "config.5.0.0.json")
    edit_json(folder / "config.json", configuration_files=["config.5.0.0.json"])


def add_distributed(folder: Path) -> None:
    """A file as a distributed checkpoint has them."""
    shutil.copy(folder / WEIGHTS_NAME, folder / "shard-00001-model-00001-of-00001.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (name_other_weights, "transformers_weights"),
        (name_other_configuration, "configuration_files"),
        (add_distributed, "distributed checkpoint"),
        (lambda folder: write_index(folder, "../outside.safetensors"), "outside"),
        (lambda folder: write_index(folder, "sub/model.safetensors"), r"found sub/model"),
        (lambda folder: write_index(folder, "pytorch_model.bin"), r"found pytorch_model\.bin"),
    ],
    ids=["weights", "configuration", "distributed", "outside", "subfolder", "pickled"],
)
def test_what_leads_elsewhere_is_refused(
    copy: Path, spoil: Callable[[Path], None], message: str
) -> None:
    """Transformers would follow it, exports and other tools would not."""
    spoil(copy)
    with pytest.raises(ModelError, match=message):
        identify(copy)


def test_an_index_beside_the_weights_is_told(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Other tools read the index first; which is read here is said, and is in the digest."""
    before = identify(copy).digest
    (copy / WEIGHTS_INDEX_NAME).write_text('{"weight_map": {}}')
    assert identify(copy).digest == before
    assert "are both there" in caplog.text


def test_weights_that_only_their_class_knows_are_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some classes of transformers read further files; a digest made without them would lie."""
    monkeypatch.setattr(transformers.GPT2Config, "extra_files", ("head.safetensors",))
    forget_models()
    save_file({"a": torch.zeros(1)}, copy / "head.safetensors")
    with pytest.raises(ModelError, match=r"head\.safetensors, which GPT2Config reads too"):
        load_model(ModelSettings(id=str(copy)), "cpu")


def test_the_code_of_an_author_is_told_and_not_run(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is studied is transformers' own class, and the log says so."""
    edit_json(copy / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    (copy / "modeling.py").write_text("raise SystemExit('run')")
    forget_models()
    model = load_model(ModelSettings(id=str(copy)), "cpu").model
    assert type(model).__module__.startswith("transformers.")
    assert "code of its author (auto_map), which is not run" in caplog.text


# Tokenizers


def test_all_files_of_transformers_tokenizers_are_known() -> None:
    """Every file that a tokenizer class names as its vocabulary is in the digest."""
    found: set[str] = set()
    for path in Path(transformers.__file__).parent.glob("models/*/tokenization_*.py"):
        if "VOCAB_FILES_NAMES = {" not in (text := path.read_text(encoding="utf-8")):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VOCAB_FILES_NAMES":
                found.update(ast.literal_eval(node.value).values())
    assert {"tokenizer.json", "vocab.txt", "spiece.model"} <= found
    assert found - {None} <= set(TOKENIZER_NAMES)


def test_a_template_that_is_taken_before_the_tokenizers_own_is_in_the_digest(copy: Path) -> None:
    """additional_chat_templates/default.jinja wins over chat_template.jinja."""
    (copy / "chat_template.jinja").write_text("one")
    before = identify(copy)
    (copy / FURTHER_TEMPLATES).mkdir()
    (copy / FURTHER_TEMPLATES / "default.jinja").write_text("two")
    assert AutoTokenizer.from_pretrained(copy).get_chat_template() == "two"
    after = identify(copy)
    assert after.digest != before.digest
    assert f"{FURTHER_TEMPLATES}/default.jinja" in after.files


def test_the_hub_gives_that_folder_and_no_other() -> None:
    """What is fetched for an id is what a copy of the repository would be identified by."""

    def is_fetched(name: str) -> bool:
        is_allowed = any(fnmatch(name, pattern) for pattern in files.HUB_PATTERNS)
        return is_allowed and not any(fnmatch(name, pattern) for pattern in files.HUB_IGNORED)

    wanted = [*TOKENIZER_NAMES, f"{FURTHER_TEMPLATES}/tool_use.jinja", "tokenizer.model.v3"]
    assert [name for name in wanted if not is_fetched(name)] == []
    others = ["onnx/model.json", "a/b.json", "additional/x.json", f"{FURTHER_TEMPLATES}2/x.jinja"]
    others += ["additional_chat_template/x.jinja", "original/tokenizer.model", "pytorch_model.bin"]
    assert [name for name in others if is_fetched(name)] == []


def test_another_version_of_the_tokenizer_is_in_the_digest(copy: Path) -> None:
    """tokenizer_config.json may name one for this release of transformers."""
    shutil.copy(copy / "tokenizer.json", copy / "tokenizer.5.0.0.json")
    edit_json(copy / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.5.0.0.json"])
    with watching() as opened:
        AutoTokenizer.from_pretrained(copy)
    assert str(copy / "tokenizer.5.0.0.json") in opened  # what it protects from
    assert "tokenizer.5.0.0.json" in identify(copy).files


# All of it


def test_every_file_that_is_opened_is_in_the_digest(copy: Path) -> None:
    """Whatever else lies in the folder: what loading opens, identity has digested."""
    others = ["README.md", "training_args.bin", "trainer_state.json", "preprocessor_config.json"]
    others += ["processor_config.json", "quantize_config.json", "custom_generate.py", "notes.txt"]
    for name in others:
        (copy / name).write_text("{}")
    (copy / FURTHER_TEMPLATES).mkdir()
    (copy / FURTHER_TEMPLATES / "rag.jinja").write_text("rag")
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (copy / "merges.txt").write_text("")
    known = identify(copy).files
    forget_models()
    with watching() as opened:
        load_model(ModelSettings(id=str(copy), chat="off"), "cpu")
    inside = {Path(name).relative_to(copy).as_posix() for name in opened if str(copy) in name}
    assert {"config.json", "tokenizer.json"} <= inside
    assert inside <= set(known)
    assert not set(known) & set(others)


# Names of weights


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "student."])
def test_wrapped_weights_are_refused_with_the_prefix(copy: Path, prefix: str) -> None:
    """Transformers would find none of them; the error says which prefix, and how to strip it."""
    tensors = {f"{prefix}{key}": value for key, value in load_file(copy / WEIGHTS_NAME).items()}
    save_file(tensors, copy / WEIGHTS_NAME, metadata={"format": "pt"})
    forget_models()
    with pytest.raises(ModelError, match=f"'{prefix}'.*random.*remove the prefix"):
        load_model(ModelSettings(id=str(copy)), "cpu")


def test_missing_weights_are_told_by_names_alone(copy: Path) -> None:
    """What loading would find random, a look at headers and names finds too."""
    loading.check_weight_names(identify(copy))
    tensors = load_file(copy / WEIGHTS_NAME)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, copy / WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing .*h\.1\.mlp\.c_fc\.weight"):
        loading.check_weight_names(identify(copy))


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_nothing_is_missing_in_what_transformers_saves(name: str, tmp_path: Path) -> None:
    """Names in files may differ from the model's; a whole checkpoint is whole by names too."""
    model = (
        make_architecture(name) if name in ARCHITECTURES else make_random_model(name, MORE[name])
    )
    model.save_pretrained(tmp_path)
    loading.check_weight_names(identify(tmp_path))


def test_a_trunk_without_its_head_is_told_by_names_alone(tmp_path: Path) -> None:
    """A head of its own that is not in the files would be random; a tied one is not missing."""
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    for is_tied in (True, False):
        folder = tmp_path / str(is_tied)
        config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=is_tied)
        AutoModelForCausalLM.from_config(config).base_model.save_pretrained(folder)
        config.save_pretrained(folder)
    loading.check_weight_names(identify(tmp_path / "True"))
    with pytest.raises(ModelError, match=r"1 missing .*lm_head\.weight"):
        loading.check_weight_names(identify(tmp_path / "False"))
