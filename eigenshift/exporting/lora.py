"""Format `lora`: the patch as a PEFT adapter on the head, on linear layers, or on both.

Of a linear layer and of tokens' own rows A = right^T and B = left. Of what enters the head
B = -(W left), so that W + B A is the patched head; W is read from the base's files a block of rows
at a time. Each module has a rank of its own, and an
alpha as large, so that nothing is scaled. A tied head cannot take an adapter that is merged later,
since merging would change the embedding too: it is refused, or the base is written beside the
adapter with a head of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from eigenshift.base.errors import ModelError
from eigenshift.exporting.adapter_targets import require_adapter
from eigenshift.exporting.base_files import PatchedBase
from eigenshift.exporting.merged import write_untied
from eigenshift.model.classes import choose_auto_class
from eigenshift.model.weight_files import NewTensor, write_changed_file
from eigenshift.patches.edits import HeadEdit, LinearEdit, ModelEdit
from eigenshift.settings import ExportTarget

UNTIED_FOLDER = "untied-base"
ADAPTER_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
PREFIX = "base_model.model."
HELD_PARTS = ("head", "linears", "logits")
"""What of an edit an adapter can hold; a patch that has any other part is refused."""
MIXER_TYPES = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
MIXER_NAME = "out_proj"
"""Model types of which PEFT takes no adapter on modules of this name (its kernels pass them by)."""


@dataclass(frozen=True)
class _Adapter:
    """What is added to one module's weight: B A.

    Attributes:
        a: Shape (k, in), float32.
        b: Shape (out, k), float32.
    """

    a: NewTensor
    b: NewTensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def write_lora(
    base: PatchedBase,
    folder: Path,
    *,
    model_id: str,
    unties: bool,
    targets: Sequence[ExportTarget] = (),
) -> int:
    """Write the adapter, and the untied base where asked to.

    Args:
        base: The base's files and the patch.
        folder: Receives the files.
        model_id: Of the base, for the adapter's configuration.
        unties: Write a base whose head is its own into `untied-base/`, if the patch changes a head
            that is tied.
        targets: Tools that are to load it: what they would not is refused, and all modules get the
            largest rank, since not all of them read a rank for each.

    Returns:
        The largest rank.

    Raises:
        ModelError: The head is tied and nothing was said about it, the patch changes more than
            weights of the head and of linear layers, or a tool would not load it.
    """
    adapters = _list_adapters(base)
    ranks = {name: adapter.rank for name, adapter in adapters.items()}
    for target in targets:
        head = base.skeleton.get_submodule(base.head_name)
        model_type = base.skeleton.config.model_type
        require_adapter(target, model_type, ranks, base.head_name, head.out_features)
    if _needs_untying(base) and not unties:
        raise ModelError(
            f"{model_id}: expected an output head of its own, found one that shares its tensor "
            "with the input embedding. A LoRA on it would change the embedding too as soon as it "
            "is merged. Use --untie to get the base with a head of its own beside the adapter, or "
            "--format merged."
        )
    if targets:
        adapters = {name: _pad(adapter, max(ranks.values())) for name, adapter in adapters.items()}
    tensors = {}
    for name, adapter in adapters.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = adapter.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = adapter.b
    write_changed_file(None, folder / ADAPTER_NAME, tensors)
    ranks = {name: adapter.rank for name, adapter in adapters.items()}
    configuration = _describe_adapter(base, ranks, model_id)
    text = json.dumps(configuration, indent=2, sort_keys=True)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    if _needs_untying(base):
        (folder / UNTIED_FOLDER).mkdir()
        write_untied(base, folder / UNTIED_FOLDER)
    return max(ranks.values())


def describe_use(base: PatchedBase) -> str:
    """The card's part on loading."""
    is_untied = _needs_untying(base)
    class_name = choose_auto_class(base.skeleton.config).__name__
    source = f"<this folder>/{UNTIED_FOLDER}" if is_untied else "<base model>"
    note = (
        f"""
The base's head is its input embedding. `{UNTIED_FOLDER}/` is the base with a head of its own and
nothing else changed: put the adapter on it. On the tied base merging would change the embedding.
"""
        if is_untied
        else ""
    )
    if base.says_tied and not base.is_tied:
        note += """
The base's configuration calls its head tied, but its files hold two different tensors,
which transformers 5 keeps apart. Set `tie_word_embeddings: false` in its `config.json` before
resizing the embeddings or serving it: what trusts the setting would tie them.
"""
    if base.patch.description.beside:
        note += """
The base's linear layers are quantised: leave the adapter beside them. Merged into codes it would be
rounded with them.
"""
    return f"""## Load

    from peft import PeftModel
    from transformers import {class_name}

    model = {class_name}.from_pretrained("{source}")
    model = PeftModel.from_pretrained(model, "<this folder>")
    model = model.merge_and_unload()  # if it is to be permanent
{note}
## Undo

`model.disable_adapter()` for a block, `model.unload()` for good.
"""


def _needs_untying(base: PatchedBase) -> bool:
    """Whether the patch changes a head that is the input embedding."""
    return base.is_tied and base.head_weight is not None


def _describe_adapter(base: PatchedBase, ranks: Mapping[str, int], model_id: str) -> dict[str, Any]:
    """PEFT's configuration: modules by their full names, with the rank of each.

    Names in the patterns are regular expressions that PEFT matches with the end of a module's name
    (from a dot on), so full names are unambiguous. `fan_in_fan_out` is one for all: where a model
    has both kinds of layer, PEFT sets it for each and warns.
    """
    largest = max(ranks.values())  # servers hold this one against their bound
    patterns = {name: rank for name, rank in ranks.items() if rank != largest}
    modules = [base.skeleton.get_submodule(name) for name in ranks]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_id,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "lora_dropout": 0.0,
        "target_modules": list(ranks),
        "bias": "none",
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in modules),
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _list_adapters(base: PatchedBase) -> dict[str, _Adapter]:
    """Module -> what is added to its weight; modules to which nothing is added are left out.

    Raises:
        ModelError: The patch changes more than such weights, or nothing, or what PEFT refuses.
    """
    edit, folds = base.patch.edit, set(base.folds)
    place = base.patch.description.model_id
    beside = base.patch.description.beside
    held = {f"{name}.weight" for name in edit.linears if name not in beside}
    adapters = {name: _adapt_linear(linear) for name, linear in edit.linears.items()}
    if edit.changes_head:
        held.add(f"{base.head_name}.weight")
        adapters[base.head_name] = _adapt_head(base, edit)
    adapters = {name: adapter for name, adapter in adapters.items() if adapter.rank}
    others = [
        field.name
        for field in fields(edit)
        if field.name not in HELD_PARTS and getattr(edit, field.name)
    ]
    if others or folds != held or not adapters:
        changed = sorted(folds - held) or sorted(edit.units) or others or ["nothing"]
        raise ModelError(
            f"{place}: expected a patch of the weights of the head and of linear layers alone, "
            f"found one of {', '.join(changed[:3])}. A LoRA holds no bias and no scaled units. Use "
            "--format merged."
        )
    if base.skeleton.config.model_type in MIXER_TYPES:
        refused = [name for name in adapters if name.rpartition(".")[2] == MIXER_NAME]
        if refused:
            raise ModelError(
                f"{place}: expected modules that PEFT puts adapters on, found {refused[0]}, which "
                "it refuses in state-space models. Use --format merged."
            )
    return adapters


def _pad(adapter: _Adapter, rank: int) -> _Adapter:
    """The same product with more terms, all of them zero."""
    (_, n_in), (n_out, _) = adapter.a.shape, adapter.b.shape
    n_more = rank - adapter.rank

    def widen_a() -> Iterator[Tensor]:
        yield from adapter.a.make_blocks()
        if n_more:
            yield torch.zeros(n_more, n_in)

    def widen_b() -> Iterator[Tensor]:
        for rows in adapter.b.make_blocks():
            yield torch.cat([rows, torch.zeros(len(rows), n_more)], 1)

    return _Adapter(
        NewTensor(torch.float32, (rank, n_in), widen_a),
        NewTensor(torch.float32, (n_out, rank), widen_b),
    )


def _adapt_linear(edit: LinearEdit) -> _Adapter:
    a, b = edit.right.T.float(), edit.left.float()
    return _Adapter(_hold(a), _hold(b))


def _adapt_head(base: PatchedBase, edit: ModelEdit) -> _Adapter:
    """Both changes of the head side by side; rows that are added read the state as it was."""
    head, logits = edit.head, edit.logits
    if head is None:
        assert logits is not None  # noqa: S101 - one of them changes the head
        return _adapt_linear(LinearEdit(logits.left, logits.right))
    vocab = base.parameters[f"{base.head_name}.weight"].stored.shape[0]
    added, read = torch.zeros(vocab, 0), head.right
    if logits is not None:
        moved = logits.after(head, has_bias=False)
        added, read = moved.left.float(), torch.cat([read, moved.right], 1)
    b = NewTensor(
        torch.float32, (vocab, read.shape[1]), lambda: _iterate_written(base, head, added)
    )
    return _Adapter(_hold(read.T.float()), b)


def _hold(values: Tensor) -> NewTensor:
    """A small tensor in one block."""
    return NewTensor(values.dtype, tuple(values.shape), lambda: iter([values]))


def _iterate_written(base: PatchedBase, edit: HeadEdit, added: Tensor) -> Iterator[Tensor]:
    """-(W left), and beside it what is added to tokens' rows, in blocks of rows, float32."""
    left, first = edit.left.float(), 0
    for rows in base.parameters[f"{base.head_name}.weight"].iterate_blocks():
        yield torch.cat([-(rows.float() @ left), added[first : first + len(rows)]], 1)
        first += len(rows)
