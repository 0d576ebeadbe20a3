"""An edit as named tensors: what patch files and the files of found edits hold.

The head's directions are `v` (measured) and `left` (taken out), its targets `target`; units of the
trunk `units/<module>/scale` and `shift`, linear layers `linears/<module>/left` and `right`, tokens'
logits `logits/left`, `right` and `shift`, changes that depend on the state
`adaptive/<module>/readout`, `offset`, `slope` and `shift`. Reads and writes no files itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from eigenshift.base.errors import ComponentError
from eigenshift.patches.edits import (
    AdaptiveEdit,
    HeadEdit,
    LinearEdit,
    LogitEdit,
    ModelEdit,
    UnitEdit,
)

HEAD_PARTS = ("v", "left", "target", "sigma")
"""Of the head; `sigma`, gains before and after, is for people to read."""
MODULE_KINDS = ("units", "linears", "logits", "adaptive")
LOGIT_PARTS = ("left", "right", "shift")
ADAPTIVE_PARTS = ("readout", "offset", "slope", "shift")


def list_tensors(edit: ModelEdit) -> dict[str, Tensor]:
    """All that an edit is, by name; shifts that are zero are left out."""
    tensors: dict[str, Tensor] = {}
    if edit.head is not None:
        tensors |= {"v": edit.head.right, "left": edit.head.left}
        if edit.head.has_shift:
            tensors["target"] = edit.head.target
    for name, unit in edit.units.items():
        tensors[f"units/{name}/scale"] = unit.scale
        if unit.has_shift:
            tensors[f"units/{name}/shift"] = unit.shift
    for name, linear in edit.linears.items():
        tensors[f"linears/{name}/left"] = linear.left
        tensors[f"linears/{name}/right"] = linear.right
    if edit.logits is not None:
        tensors |= {f"logits/{part}": getattr(edit.logits, part) for part in LOGIT_PARTS}
    for name, adaptive in edit.adaptive.items():
        tensors |= {f"adaptive/{name}/{part}": getattr(adaptive, part) for part in ADAPTIVE_PARTS}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def read_edit(tensors: Mapping[str, Tensor], factor: float = 0.0) -> ModelEdit:
    """The edit of named tensors.

    Args:
        tensors: As `list_tensors` gives them, perhaps with `sigma`.
        factor: What the head's gains are multiplied by where no `left` says it.

    Raises:
        ComponentError: A name is none of these; read as nothing, it would change nothing unnoticed.
    """
    for name in tensors:
        if name not in HEAD_PARTS and name.partition("/")[0] not in MODULE_KINDS:
            raise ComponentError(
                f"edit: expected tensors {', '.join(HEAD_PARTS)} and those of "
                f"{', '.join(MODULE_KINDS)}, found {name}. The file is of another version; make "
                "it again."
            )
    head: HeadEdit | None = None
    if "v" in tensors:
        right = tensors["v"].double()
        left = tensors.get("left", (1.0 - factor) * right)
        target = tensors.get("target", torch.zeros(right.shape[1], dtype=torch.float64))
        head = HeadEdit(left, right, target)
    units = {}
    for name in _list_modules(tensors, "units"):
        scale = tensors[f"units/{name}/scale"]
        shift = tensors.get(f"units/{name}/shift", torch.zeros_like(scale))
        units[name] = UnitEdit(scale, shift)
    linears = {
        name: LinearEdit(tensors[f"linears/{name}/left"], tensors[f"linears/{name}/right"])
        for name in _list_modules(tensors, "linears")
    }
    logits: LogitEdit | None = None
    if "logits/left" in tensors:
        logits = LogitEdit(**{part: tensors[f"logits/{part}"] for part in LOGIT_PARTS})
    adaptive = {
        name: AdaptiveEdit(**{part: tensors[f"adaptive/{name}/{part}"] for part in ADAPTIVE_PARTS})
        for name in _list_modules(tensors, "adaptive")
    }
    return ModelEdit(head, units, linears, logits, adaptive)


def _list_modules(tensors: Mapping[str, Tensor], part: str) -> list[str]:
    """Names of the modules of which there is a kind of change."""
    return sorted({name.split("/")[1] for name in tensors if name.startswith(f"{part}/")})
