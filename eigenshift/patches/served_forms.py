"""What a patch becomes where weights are stored in a GGUF format, as parameters of the model.

A merged export is rounded with its patch in it. Beside a rounded base an adapter keeps the patch
in full precision. Both are compared with the base rounded alike, so that what is lost is the
patch's and not the model's. Reads a model in memory; changes nothing. The formats are
`model/block_formats.py`'s, what is measured of the forms `evaluation/survival.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eigenshift.base.errors import FoldingError
from eigenshift.model.block_formats import choose_stored, name_format, round_rows
from eigenshift.model.divided import read_parameter
from eigenshift.model.loading import LanguageModel
from eigenshift.model.writers import holds_values
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import fold_edit, iterate_row_blocks
from eigenshift.patches.patching import Patch, check_base, require_in_weights
from eigenshift.settings import BlockFormat, Form

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class ServedForm:
    """A model as it is served.

    Attributes:
        form: How.
        asked: The format that was asked for; None: nothing is rounded.
        stored: What the rounded weights are stored as, each format once.
        parameters: Parameter -> its value, where it is not the base's.
        edit: What is added beside the weights; nothing but of an adapter.
        edit_kept: Share of the patch's change of the weights that is left: of what is served, less
            the base rounded alike, along the patch's own change. None of the base.
        rounding_to_edit: Frobenius norm of all that rounding changes in these weights, relative to
            that of the patch's change.
    """

    form: Form
    asked: BlockFormat | None
    stored: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    edit: ModelEdit = field(default_factory=ModelEdit)
    edit_kept: float | None = None
    rounding_to_edit: float | None = None

    def changes_trunk(self, head_name: str) -> bool:
        """Whether states on the way to the head are others than the base's."""
        in_trunk = any(not name.startswith(f"{head_name}.") for name in self.parameters)
        return in_trunk or self.edit.changes_trunk


def iterate_forms(
    language_model: LanguageModel,
    patch: Patch,
    formats: Sequence[BlockFormat],
    *,
    is_whole: bool,
) -> Iterator[ServedForm]:
    """Every form, the unrounded base and merged patch first; one is in memory at a time.

    Args:
        language_model: The unpatched model; not modified.
        patch: Made for it.
        formats: Each gives a rounded base, a merged patch, and an adapter where one can hold it.
        is_whole: All linear layers and the embedding are rounded, not only what the patch changes.

    Raises:
        FoldingError: The patch has no place in the weights, or changes no weight.
        SettingsError: The gguf package is not installed.
    """
    require_in_weights(patch)
    check_base(language_model, patch)
    merged = fold_edit(language_model, patch.edit)
    weights = [name for name, value in merged.items() if value.ndim == 2]
    if not weights:
        raise FoldingError(
            f"patch {patch.description.intervention}: expected one that changes a weight, found "
            f"{', '.join(merged) or 'none that changes anything'}. GGUF keeps norms and biases in "
            "full precision, so the patch is served as it is."
        )
    base = {
        name: read_parameter(language_model.model, name).detach().to(value.device)
        for name, value in merged.items()
    }
    others = _list_others(language_model.model, weights) if is_whole else {}
    yield ServedForm(Form.base, None)
    yield ServedForm(Form.merged, None, (), merged, edit_kept=1.0, rounding_to_edit=0.0)
    for asked in formats:
        stored: dict[str, None] = {}

        def store(
            values: Parameters, asked: BlockFormat = asked, stored: dict[str, None] = stored
        ) -> dict[str, Tensor]:
            rounded = {}
            for name, value in values.items():
                rounded[name], found = _round_parameter(language_model.model, name, value, asked)
                stored |= {} if found is None else {name_format(found): None}
            return rounded

        rounded_base, rounded_others = store(base), store(others)
        plain = {name: rounded_base[name] for name in weights}
        kinds = tuple(stored)
        yield ServedForm(Form.base, asked, kinds, {**rounded_others, **plain})
        rounded = store(merged)
        kept, rest = _measure_left(base, merged, plain, rounded, weights)
        yield ServedForm(
            Form.merged,
            asked,
            kinds,
            {**rounded_others, **rounded},
            edit_kept=kept,
            rounding_to_edit=rest,
        )
        if is_adapter(patch.edit):
            _, rest = _measure_left(base, merged, base, plain, weights, unrounded=base)
            yield ServedForm(
                Form.lora,
                asked,
                kinds,
                {**rounded_others, **plain},
                patch.edit,
                edit_kept=1.0,
                rounding_to_edit=rest,
            )


def is_adapter(edit: ModelEdit) -> bool:
    """Whether an adapter holds an edit: products added to weights, and nothing else."""
    shifts = [part for part in (edit.head, edit.logits) if part is not None and part.has_shift]
    return not (edit.units or edit.adaptive or shifts)


def _list_others(model: Any, changed: Sequence[str]) -> dict[str, Tensor]:
    """Weights of linear layers and of the input embedding that the patch leaves alone."""
    embedding = model.get_input_embeddings()
    found = {}
    for name, module in model.named_modules():
        if not (isinstance(module, nn.Linear | Conv1D) or module is embedding):
            continue
        if holds_values(module) and f"{name}.weight" not in changed:
            found[f"{name}.weight"] = read_parameter(model, f"{name}.weight").detach()
    return found


def _round_parameter(
    model: Any, name: str, value: Tensor, asked: BlockFormat
) -> tuple[Tensor, BlockFormat | None]:
    """A parameter as it is stored; what has one axis stays as it is."""
    if value.ndim != 2:
        return value, None
    is_turned = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)  # (in, out)
    rows = value.T.contiguous() if is_turned else value
    stored = choose_stored(asked, rows.shape[1])
    rounded = round_rows(rows, stored)
    return (rounded.T.contiguous() if is_turned else rounded), stored


def _measure_left(
    base: Parameters,
    merged: Parameters,
    before: Parameters,
    after: Parameters,
    names: Sequence[str],
    unrounded: Parameters | None = None,
) -> tuple[float, float]:
    """Share of the change base -> merged in before -> after, and |after - unrounded| to it.

    `unrounded` is the merged weights where nothing is said.
    """
    along = squares = rest = 0.0
    for name in names:
        for first, n_rows in iterate_row_blocks(base[name].shape):
            rows = slice(first, first + n_rows)
            change = merged[name][rows].double() - base[name][rows].double()
            found = after[name][rows].double()
            along += float(((found - before[name][rows].double()) * change).sum())
            squares += float((change * change).sum())
            meant = (merged if unrounded is None else unrounded)[name][rows].double()
            rest += float(((found - meant) ** 2).sum())
    if squares == 0.0:
        return 1.0, 0.0
    return along / squares, float(torch.tensor(rest / squares).sqrt())
