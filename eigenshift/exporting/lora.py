"""Format `lora`: the patch as a PEFT adapter of rank k on the head.

A = right^T and B = -(W left), so that W + B A is the patched head; W is read from the base's files
a block of rows at a time. A tied head cannot take an adapter that is merged later, since merging
would change the embedding too: it is refused, or the base is written beside the adapter with a
head of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from eigenshift.base.errors import ModelError
from eigenshift.exporting.base_files import PatchedBase
from eigenshift.exporting.merged import write_untied
from eigenshift.model.weight_files import NewTensor, write_changed_file
from eigenshift.patches.edits import HeadEdit

UNTIED_FOLDER = "untied-base"
ADAPTER_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"


def write_lora(base: PatchedBase, folder: Path, *, model_id: str, unties: bool) -> None:
    """Write the adapter, and the untied base where asked to.

    Args:
        base: The base's files and the patch.
        folder: Receives the files.
        model_id: Of the base, for the adapter's configuration.
        unties: Write a base whose head is its own into `untied-base/`.

    Raises:
        ModelError: The head is tied and nothing was said about it, or the patch changes more than
            the head's weight.
    """
    edit = _find_head_edit(base)
    if base.is_tied and not unties:
        raise ModelError(
            f"{model_id}: expected an output head of its own, found one that shares its tensor "
            "with the input embedding. A LoRA on it would change the embedding too as soon as it "
            "is merged. Use --untie to get the base with a head of its own beside the adapter, or "
            "--format merged."
        )
    name = base.head_name
    a, vocab = edit.right.T.float(), base.parameters[f"{name}.weight"].stored.shape[0]
    tensors = {
        "lora_A": NewTensor(a.dtype, tuple(a.shape), lambda: iter([a])),
        "lora_B": NewTensor(a.dtype, (vocab, edit.rank), lambda: _iterate_gain(base, edit)),
    }
    write_changed_file(
        None,
        folder / ADAPTER_NAME,
        {f"base_model.model.{name}.{part}.weight": tensor for part, tensor in tensors.items()},
    )
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_id,
        "r": edit.rank,
        "lora_alpha": edit.rank,
        "lora_dropout": 0.0,
        "target_modules": [name],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    text = json.dumps(configuration, indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    if base.is_tied:
        (folder / UNTIED_FOLDER).mkdir()
        write_untied(base, folder / UNTIED_FOLDER)


def describe_use(base: PatchedBase) -> str:
    """The card's part on loading."""
    source = f"<this folder>/{UNTIED_FOLDER}" if base.is_tied else "<base model>"
    note = (
        f"""
The base's head is its input embedding. `{UNTIED_FOLDER}/` is the base with a head of its own and
nothing else changed: put the adapter on it. On the tied base merging would change the embedding.
"""
        if base.is_tied
        else ""
    )
    return f"""## Load

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("{source}")
    model = PeftModel.from_pretrained(model, "<this folder>")
    model = model.merge_and_unload()  # if it is to be permanent
{note}
## Undo

`model.disable_adapter()` for a block, `model.unload()` for good.
"""


def _find_head_edit(base: PatchedBase) -> HeadEdit:
    edit, folds = base.patch.edit.head, set(base.folds)
    if edit is None or folds != {f"{base.head_name}.weight"}:
        raise ModelError(
            f"{base.patch.description.model_id}: expected a patch of the head's weight alone, "
            f"found one of {', '.join(sorted(folds)[:3])}. A LoRA holds no bias and no scaled "
            "units. Use --format merged."
        )
    return edit


def _iterate_gain(base: PatchedBase, edit: HeadEdit) -> Iterator[Tensor]:
    """-(W left) in blocks of rows, shape (row, k), float32."""
    left = edit.left.float()
    for rows in base.parameters[f"{base.head_name}.weight"].iterate_blocks():
        yield -(rows.float() @ left)
