"""Names of weights that a wrapper around the model left in a checkpoint.

A trainer that saves its wrapped model writes `module.`, `_orig_mod.` or `base_model.model.` before
or within every name. transformers then finds none of its weights, warns and goes on with random
ones. Works on names alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

LEADING = {
    "base_model.model.": "PEFT",
    "module.": "DataParallel, DistributedDataParallel or DeepSpeed",
}
"""At the beginning of a name -> what writes it."""
WITHIN = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
}
"""Part of a name, anywhere -> what writes it."""
UNMERGED = (".base_layer.", ".lora_A.", ".lora_B.")
"""In names of a model whose adapter is still beside its weights: stripping is not enough."""


def explain_wrapped(keys: Sequence[str]) -> str | None:
    """Say which wrapper left its names in a checkpoint and how to strip them, None if none did.

    A wrapped name whose own name is there too is a copy that transformers passes over.

    Args:
        keys: Of all its tensors.
    """
    known = set(keys)
    wrapped = [key for key in keys if unwrap_name(key) not in known]
    unmerged = [key for key in keys if any(mark in key for mark in UNMERGED)]
    if unmerged:
        return (
            f"expected a model's own weights, found {len(unmerged)} tensors of an adapter that is "
            f"not merged, e.g. {unmerged[0]}. transformers would pass over them and set the layers "
            "they are on to random values. Call merge_and_unload() on the PEFT model, save "
            "what it returns with save_pretrained, and give that folder."
        )
    if not wrapped:
        return None
    first = wrapped[0]
    found = {mark: writer for mark, writer in LEADING.items() if f".{mark}" in f".{first}"}
    found |= {f"{part}.": WITHIN[part] for part in first.split(".") if part in WITHIN}
    prefixes = " and ".join(f"{mark!r} ({writer})" for mark, writer in found.items())
    return explain_prefix(wrapped, len(keys), f"with {prefixes}", unwrap_name(wrapped[0]))


def explain_prefix(wrapped: Sequence[str], n_tensors: int, how: str, plain: str) -> str:
    """What is wrong with prefixed names, and how to strip them.

    Args:
        wrapped: Names with a prefix.
        n_tensors: Tensors in the checkpoint.
        how: The prefix, in words.
        plain: The first name without it.
    """
    return (
        f"expected the model's own names for its weights, found {len(wrapped)} of {n_tensors} "
        f"tensors named {how}: {wrapped[0]} instead of {plain}. transformers would not find them, "
        "warn, and go on with random values. The wrapped model was saved in place of the model in "
        "it. Save the inner model with save_pretrained, or rename the tensors: "
        "safetensors.torch.load_file, remove the prefix from every key, save_file with "
        "metadata={'format': 'pt'}; of several files the index too."
    )


def unwrap_name(key: str) -> str:
    """A name without what wrappers add to it."""
    key = ".".join(part for part in key.split(".") if part not in WITHIN)
    while any(key.startswith(mark) for mark in LEADING):
        for mark in LEADING:
            key = key.removeprefix(mark)
    return key


def find_prefix(absent: Iterable[str], keys: Iterable[str]) -> str | None:
    """What stands before most of a model's names in a checkpoint; None if nothing in common does.

    Args:
        absent: Names of parameters that were not found.
        keys: Of tensors that no parameter was found for.
    """
    wanted = list(absent)
    names = set(wanted)
    found: Counter[str] = Counter()
    for key in keys:
        head, dot, rest = key.partition(".")
        prefix = ""
        while dot:
            prefix += head + dot
            if rest in names:
                found[prefix] += 1
            head, dot, rest = rest.partition(".")
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    return prefix if 2 * count > len(wanted) else None
