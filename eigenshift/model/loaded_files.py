"""Which files of a folder transformers reads when it loads a model, and which it must not find.

`from_pretrained` reads more than `model.safetensors`: what it reads is named here, so that the
digest of a model covers it. What would change the model and cannot be covered, because it comes
from elsewhere or depends on what is installed, is refused with its reason. Reads names, small JSON
documents and headers; loads nothing. Finding the folder and digesting it is `files.py`'s.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eigenshift.base.errors import ModelError
from eigenshift.model.wrapped_names import explain_wrapped

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAMES = ("config.json", "generation_config.json")
ADAPTER_CONFIG_NAME = "adapter_config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
FURTHER_TEMPLATES = "additional_chat_templates"
"""A folder of further chat templates; one called `default` is taken before the tokenizer's own."""
VOCABULARY_NAMES = (
    *("tokenizer.json", "tokenizer.model", "tiktoken.model", "tekken.json"),
    *("vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json", "target_vocab.json"),
    *("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model"),
    *("spm_char.model", "source.spm", "target.spm", "byte_maps.json", "prophetnet.tokenizer"),
)
TOKENIZER_NAMES = (
    *VOCABULARY_NAMES,
    *("merges.txt", "bpe.codes", "dict.txt", "emoji.json", "normalizer.json"),
    *("entity_vocab.json", "word_shape.json", "word_pronunciation.json"),
    TOKENIZER_CONFIG_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE_NAME,
)
"""The first are enough for a tokenizer; all that classes of transformers name is in the second."""
TOKENIZER_PATTERNS = ("*.tiktoken", "tokenizer.*.json", "tokenizer.model.*")
"""Families of names: tiktoken's, versions of tokenizer.json, versions of Mistral's."""
PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json", "chat_template.json")
"""What stands beside the tokenizer of a model that sees; the model that reads text ignores it."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ELSEWHERE = {
    "transformers_weights": f"rename that file to {WEIGHTS_NAME}",
    "configuration_files": "rename the file for your transformers to config.json",
}
"""Entries of config.json that make transformers read another file, and what to do about it."""
DISTRIBUTED_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Of a distributed checkpoint, which transformers takes before model.safetensors."""


def list_loaded_files(model_id: str, folder: Path) -> list[str]:
    """Names, relative to the folder, of all files that decide what transformers loads from it.

    Raises:
        ModelError: The model is incomplete, damaged, pickled or wrapped, or something in the folder
            makes transformers load another one than these files hold.
    """
    _refuse_adapter(model_id, folder)
    config = _read_config(model_id, folder)
    for entry, remedy in ELSEWHERE.items():
        if config.get(entry):
            raise ModelError(
                f"{model_id}: expected config.json to be the model's own and its weights in "
                f"{WEIGHTS_NAME}, found {entry!r} in it, which names other files. Other tools read "
                f"other weights then. In a copy of the folder, {remedy} and remove the entry."
            )
    _refuse_distributed(model_id, folder)
    names = _list_weights(model_id, folder)
    names += [name for name in CONFIG_NAMES if (folder / name).is_file()]
    return sorted({*names, *list_tokenizer_files(folder)})


def list_tokenizer_files(folder: Path) -> list[str]:
    """Names, relative to the folder, of the files its tokenizer is made from."""
    found = {name for name in TOKENIZER_NAMES if (folder / name).is_file()}
    for pattern in (*TOKENIZER_PATTERNS, f"{FURTHER_TEMPLATES}/*.jinja"):
        paths = (path for path in folder.glob(pattern) if path.is_file())
        found.update(path.relative_to(folder).as_posix() for path in paths)
    return sorted(found)


def has_vocabulary(folder: Path) -> bool:
    """Whether there is anything a tokenizer can be made from."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return any(name in VOCABULARY_NAMES or name.endswith(".tiktoken") for name in names)


def read_keys(folder: Path, names: Iterable[str]) -> list[str]:
    """Keys of all tensors in the safetensors files among some."""
    keys: list[str] = []
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(str(folder / name), framework="numpy") as file:
            keys += file.keys()
    return keys


def names_authors_code(folder: Path) -> bool:
    """Whether a configuration names code of the model's author, which is never run here."""
    return bool(_read_json(folder / CONFIG_NAMES[0]).get("auto_map"))


def _refuse_adapter(model_id: str, folder: Path) -> None:
    """An adapter beside a model is put onto it where PEFT is installed, and not elsewhere."""
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{model_id}: expected a model in {folder}, found an adapter ({ADAPTER_CONFIG_NAME}). "
            "An adapter is not a model by itself. Merge it into its base model (peft "
            "merge_and_unload), save that with save_pretrained and give its folder."
        )
    raise ModelError(
        f"{model_id}: expected a model by itself in {folder}, found an adapter beside it "
        f"({ADAPTER_CONFIG_NAME}). transformers puts the adapter onto the model where PEFT is "
        "installed and leaves it out elsewhere, so the folder is two models. Move adapter_* into a "
        "folder of its own; for the model with the adapter, merge it (peft merge_and_unload), "
        "save_pretrained, and give the new folder."
    )


def _refuse_distributed(model_id: str, folder: Path) -> None:
    shard = next(
        (path.name for path in folder.iterdir() if DISTRIBUTED_SHARD.match(path.name)), None
    )
    if shard is not None:
        raise ModelError(
            f"{model_id}: expected weights in {WEIGHTS_NAME} (or its index and shards) in "
            f"{folder}, found a distributed checkpoint ({shard}), which transformers takes before "
            "all others. Load it with transformers, write it with save_pretrained into a new "
            "folder, and give that."
        )


def _list_weights(model_id: str, folder: Path) -> list[str]:
    """Names of the safetensors files the model is loaded from, checked to be whole."""
    index = folder / WEIGHTS_INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file():
        names = [WEIGHTS_NAME]
        if index.is_file():
            logger.warning(
                "%s: %s and %s are both there; transformers and EigenShift read the first, other "
                "tools the second. Remove the one that is not meant",
                *(model_id, WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
            )
    elif index.is_file():
        names = [WEIGHTS_INDEX_NAME, *_read_index(model_id, index)]
    else:
        raise ModelError(_explain_no_weights(model_id, folder))
    keys: list[str] = []
    for name in names:
        if name != WEIGHTS_INDEX_NAME:
            keys += _check_weights(model_id, folder / name)
    wrapped = explain_wrapped(keys)
    if wrapped is not None:
        raise ModelError(f"{model_id}: {wrapped}")
    return names


def _read_index(model_id: str, index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or "\\" in name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{model_id}: expected a weight_map in {index.name}, found: {type(error).__name__}. "
            "The file is damaged. Fetch the model again."
        ) from error
    unfit = outside or [name for name in names if not name.endswith(".safetensors")]
    if unfit:
        raise ModelError(
            f"{model_id}: expected names of safetensors files beside {index.name} in it, found "
            f"{unfit[0]}. Weights from elsewhere, or pickled ones, are not read. Put the files "
            "into the folder, or write the model again with save_pretrained."
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{model_id}: expected {len(names)} weight files ({index.name}), found "
            f"{len(names) - len(missing)}; missing: {', '.join(missing[:3])}. The copy is not "
            "complete. Fetch the model again."
        )
    return names


def _explain_no_weights(model_id: str, folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickled = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    expected = f"{model_id}: expected {WEIGHTS_NAME} (or its index and shards) in {folder}, found"
    if any(name.startswith("adapter_model") for name in names):
        return (
            f"{expected} an adapter. An adapter is not a model by itself. Merge it into its base "
            "model (peft merge_and_unload) and give that folder."
        )
    what = f"only {', '.join(pickled[:3])}" if pickled else "no safetensors weights"
    return (
        f"{expected} {what}. Pickled weights can run code when opened, so they are never opened "
        "here. On a machine where you trust them, load the model with transformers, write it with "
        "save_pretrained (that writes safetensors), and give the new folder."
    )


def _check_weights(model_id: str, path: Path) -> list[str]:
    """Read a safetensors header; it states how long the file must be. Returns the tensors' keys."""
    try:
        with safe_open(str(path), framework="numpy") as file:  # "pt" imports torch, for names
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{model_id}: expected a whole safetensors file in {path.name}, found: {error}. The "
            "download was probably cut short, or the file is a git-lfs pointer. Fetch it again."
        ) from error


def _read_config(model_id: str, folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{model_id}: expected config.json in {folder}, found none. The folder holds no model, "
            "or only part of one. Check model.id, or fetch the model again."
        )
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one of a file that holds none (loading says what is wrong)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
