"""Which tensor of a checkpoint is which parameter of the model that transformers builds from it.

Names differ: a checkpoint may have been saved without the model's prefix, with another name for
the head, or with one tensor per expert where the model has one for all. The answer is
transformers' own: the renaming it would do on loading. Reads configuration and names, no values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from eigenshift.model.classes import choose_auto_class
from eigenshift.model.heads import find_head


def build_skeleton(folder: Path, *, is_causal: bool = True) -> Any:
    """The model of a folder without its values: on the meta device, in no memory.

    Of quantised weights it is the model before it was quantised.

    Args:
        folder: With the model's configuration.
        is_causal: It has a head; otherwise its trunk is built.
    """
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    auto_class = choose_auto_class(config) if is_causal else AutoModel
    with torch.device("meta"):
        return auto_class.from_config(config, trust_remote_code=False).eval()


def match_parameters(skeleton: Any, keys: Iterable[str]) -> dict[str, str]:
    """Find the checkpoint's key of each parameter that is stored as it is.

    Args:
        skeleton: The model; only names and shapes are read.
        keys: Of all tensors in the checkpoint.

    Returns:
        Name of the parameter -> key. A parameter that is put together from several tensors on
        loading, or that is not in the files at all (a tied head), is not in it.
    """
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [item for item in mapping if isinstance(item, WeightRenaming)]
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    prefix, state = skeleton.base_model_prefix, skeleton.state_dict()
    found: dict[str, str] = {}
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name in state and pattern is None:
            found[name] = key
    return found


def list_absent(skeleton: Any, keys: Iterable[str]) -> list[str]:
    """Names of parameters that no tensor of a checkpoint is for: they would be random.

    Args:
        skeleton: The model; only names and shapes are read.
        keys: Of all tensors in the checkpoint; of weights that are not quantised.

    Returns:
        Sorted. What is tied to a parameter that is there is there, and what is put together from
        several tensors is there if one of them is.
    """
    mapping = get_model_conversion_mapping(skeleton)
    renamings = [item for item in mapping if isinstance(item, WeightRenaming)]
    converters = [item for item in mapping if isinstance(item, WeightConverter)]
    prefix, state = skeleton.base_model_prefix, skeleton.state_dict()
    found = {rename_source_key(key, renamings, converters, prefix, state)[0] for key in keys}
    found.update(keys)
    for name, source in getattr(skeleton, "all_tied_weights_keys", {}).items():
        if found & {name, source}:
            found |= {name, source}
    passed_over = skeleton._keys_to_ignore_on_load_missing or []
    return sorted(
        name
        for name in state.keys() - found
        if not any(re.search(pattern, name) for pattern in passed_over)
    )


def choose_key(skeleton: Any, name: str, keys: Mapping[str, str]) -> str:
    """The key for a parameter the checkpoint does not have yet, in the style of those it has.

    Args:
        skeleton: The model.
        name: Of the parameter.
        keys: Parameter -> key of those the checkpoint has.
    """
    if all(key == known for known, key in keys.items()):
        return name
    parameter = skeleton.get_parameter(name)
    (key,) = revert_weight_conversion(skeleton, {name: parameter})
    return str(key) if match_parameters(skeleton, [key]) == {name: key} else name


def find_embedding_name(skeleton: Any) -> str | None:
    """Name of the input embedding's parameter if the head shares it, else None."""
    _, head = find_head(skeleton)
    embedding = skeleton.get_input_embeddings()
    if getattr(embedding, "weight", None) is not head.weight:
        return None
    return next(
        f"{name}.weight" for name, module in skeleton.named_modules() if module is embedding
    )
