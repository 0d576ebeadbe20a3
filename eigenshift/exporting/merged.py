"""Format `merged`: the base's checkpoint with the changed tensors in it, streamed file to file.

Only files that hold a changed tensor are written anew, a block of rows at a time; the others are
copied. A tied head gets a tensor of its own and the configuration says so. Changed tensors are in
the dtype the run measured (docs/decisions/0034-merged-exports.md). A checkpoint whose tensors
transformers puts together on loading cannot be streamed: `write_merged_in_memory` is for that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from eigenshift.base.errors import ModelError
from eigenshift.exporting.base_files import PatchedBase
from eigenshift.model.classes import choose_auto_class
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loaded_files import (
    CONFIG_NAMES,
    PROCESSOR_NAMES,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    list_tokenizer_files,
    names_authors_code,
)
from eigenshift.model.loading import LanguageModel
from eigenshift.model.weight_files import Checkpoint, NewTensor, write_changed_file
from eigenshift.model.weight_loading import save_weights
from eigenshift.patches.patching import Patch, apply_patch, untie_head
from eigenshift.store.output_folder import check_space

HEAD_FILE_NAME = "model-head.safetensors"
"""Holds the head that a tied checkpoint of several files did not have."""
CONFIG_NAME, GENERATION_CONFIG_NAME = CONFIG_NAMES
AUTHORS_CODE = "auto_map"
LICENSE_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*")


def write_merged(base: PatchedBase, folder: Path) -> dict[str, str]:
    """Write the patched checkpoint.

    Args:
        base: The base's files and the patch.
        folder: Receives the files.

    Returns:
        Parameter -> digest of its values as written.

    Raises:
        SettingsError: There is too little space.
        OSError: It cannot be written.
    """
    written = write_checkpoint(base.checkpoint, base.make_patched(), folder)
    write_configuration(base.checkpoint.folder, folder, dtype=base.dtype, unties=base.unties)
    copy_companions(base.checkpoint.folder, folder)
    return {name: written[parameter.key] for name, parameter in base.parameters.items()}


def write_untied(base: PatchedBase, folder: Path) -> None:
    """Write the unpatched base with a head of its own, as `write_merged` does."""
    write_checkpoint(base.checkpoint, base.make_untied(), folder)
    write_configuration(base.checkpoint.folder, folder, dtype=base.dtype, unties=True)
    copy_companions(base.checkpoint.folder, folder)


def write_merged_in_memory(
    language_model: LanguageModel, patch: Patch, source: Path, folder: Path
) -> dict[str, str]:
    """Patch a loaded model, which nobody else may use, and have transformers save it.

    Needs the model's memory and gives shards of its own; returns what `write_merged` does.
    """
    apply_patch(language_model, patch)
    if not language_model.head.is_tied:
        untie_head(language_model.model)  # a configuration may say otherwise than the files
    save_weights(language_model.model, folder)
    write_configuration(folder, folder, dtype=None, unties=False)
    copy_companions(source, folder)
    return {
        name: digest_tensor(language_model.model.get_parameter(name))
        for name in patch.description.tensors
    }


def write_checkpoint(
    checkpoint: Checkpoint, changed: Mapping[str, NewTensor], folder: Path
) -> dict[str, str]:
    """Write a checkpoint with some tensors replaced or added; key -> digest of those.

    Raises:
        SettingsError: There is too little space.
        OSError: It cannot be written.
    """
    check_space(folder, checkpoint.n_bytes + sum(tensor.n_bytes for tensor in changed.values()))
    homes = {key: _choose_file(checkpoint, key) for key in changed}
    digests: dict[str, str] = {}
    for name in checkpoint.file_names:
        its_own = {key: changed[key] for key, home in homes.items() if home == name}
        if its_own:
            source = checkpoint.folder / name
            digests |= write_changed_file(source, folder / name, its_own)
        else:
            shutil.copyfile(checkpoint.folder / name, folder / name)
    added = {key: changed[key] for key, home in homes.items() if home == HEAD_FILE_NAME}
    if added:
        digests |= write_changed_file(None, folder / HEAD_FILE_NAME, added)
    if checkpoint.index is not None:
        index = _update_index(checkpoint, changed, homes)
        _write_json(folder / WEIGHTS_INDEX_NAME, index)
    return digests


def write_configuration(source: Path, folder: Path, *, dtype: str | None, unties: bool) -> None:
    """Copy the configuration; it is made to say what dtype was measured and that a head is untied.

    transformers 5 keeps two different tensors whatever the configuration says, warns, and ties them
    in `tie_weights` and `resize_token_embeddings`; serving stacks and converters trust the setting.
    The class that was measured is transformers' own, so code of the base's author is not named.
    """
    document = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
    changes: dict[str, Any] = {"tie_word_embeddings": False} if unties else {}
    if dtype is not None:
        changes["torch_dtype" if "torch_dtype" in document else "dtype"] = dtype
    changed = {name: value for name, value in document.items() if name != AUTHORS_CODE} | changes
    if isinstance(document.get("text_config"), dict):
        changed["text_config"] = document["text_config"] | changes
    if changed != document:
        _write_json(folder / CONFIG_NAME, changed)
    elif source != folder:
        shutil.copyfile(source / CONFIG_NAME, folder / CONFIG_NAME)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, processor, generation settings, licence, where the folder lacks them."""
    names = {path.name for pattern in LICENSE_PATTERNS for path in source.glob(pattern)}
    names.update(list_tokenizer_files(source), PROCESSOR_NAMES, [GENERATION_CONFIG_NAME])
    for name in sorted(names):
        if (source / name).is_file() and not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def describe_use(base: PatchedBase | None, names: Sequence[str], source: Path) -> str:
    """The card's part on loading.

    Args:
        base: The base's files; None if transformers wrote the checkpoint.
        names: Of the parameters that changed.
        source: The base's folder.
    """
    config = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    class_name = choose_auto_class(config).__name__
    if base is None:
        how = (
            "The base stores some of these in parts, so transformers wrote all files anew: shards "
            "and names may differ from the base's."
        )
    elif base.is_tied and base.head_weight is not None:
        how = (
            "The head has a tensor of its own (`tie_word_embeddings: false`); the input embedding "
            "and all else are the base's, byte for byte."
        )
    else:
        how = "All other tensors are the base's, byte for byte."
    if base is not None and base.says_tied and not base.is_tied:
        how += (
            " The base's configuration calls the head tied, but its files hold two different "
            "tensors, which transformers keeps apart; here it says `tie_word_embeddings: false`, "
            "since other tools trust it."
        )
    if names_authors_code(source):
        how += (
            " The base's configuration names code of its author (`auto_map`). What was measured is "
            "transformers' own class, so the configuration here does not name that code."
        )
    listed = ", ".join(f"`{name}`" for name in names[:6])
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"""## Load

    from transformers import {class_name}, AutoTokenizer

    model = {class_name}.from_pretrained("<this folder>")
    tokenizer = AutoTokenizer.from_pretrained("<this folder>")

Changed: {listed}{more}. {how}

## Undo

Load the base model instead.
"""


def _choose_file(checkpoint: Checkpoint, key: str) -> str:
    """The file that holds a tensor, or will hold one that is added."""
    if key in checkpoint.tensors:
        return checkpoint.tensors[key].path.name
    return WEIGHTS_NAME if checkpoint.index is None else HEAD_FILE_NAME


def _update_index(
    checkpoint: Checkpoint, changed: Mapping[str, NewTensor], homes: Mapping[str, str]
) -> dict[str, Any]:
    """The index with added tensors and the new sizes."""
    if checkpoint.index is None:
        raise ModelError("index: expected a checkpoint of several files, found one file.")
    replaced = [checkpoint.tensors[key] for key in changed if key in checkpoint.tensors]
    added = [tensor for key, tensor in changed.items() if key not in checkpoint.tensors]
    metadata = dict(checkpoint.index.get("metadata") or {})
    if "total_size" in metadata:
        metadata["total_size"] += sum(tensor.n_bytes for tensor in changed.values())
        metadata["total_size"] -= sum(tensor.n_bytes for tensor in replaced)
    if "total_parameters" in metadata:
        metadata["total_parameters"] += sum(torch.Size(tensor.shape).numel() for tensor in added)
    weight_map = {**checkpoint.index["weight_map"], **homes}
    return {**checkpoint.index, "metadata": metadata, "weight_map": weight_map}


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
