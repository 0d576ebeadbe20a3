"""A patch with the model it is for: applied and undone, saved and loaded.

The work is `patches/patching.py`'s. What has a place in the weights is put there, anything else is
done by hooks; undone, the model's own parameters are back, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

from eigenshift.api.models import Model
from eigenshift.api.representations import Panel, Shown, write_cell
from eigenshift.patches.patching import (
    Patch,
    apply_patch,
    check_base,
    patched_model,
    save_patch,
)
from eigenshift.patches.patching import load_patch as load_files
from eigenshift.patches.saving import save_patched_model
from eigenshift.patches.stages import DESCRIPTION_NAME, TENSORS_NAME


@dataclass(frozen=True, eq=False, repr=False)
class ModelPatch(Shown):
    """A small reversible change of one model.

    Attributes:
        model: What it changes.
        patch: What the library's own functions take.
        chosen_on: Digests of the prompts and texts it was made from; judge it on others.
        facts: What was found while it was built.
    """

    model: Model
    patch: Patch
    chosen_on: frozenset[str] = field(default=frozenset(), repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The method it was made by."""
        return self.patch.description.intervention

    def apply(self) -> AppliedPatch:
        """Change the model in place until it is undone.

        `applied = patch.apply()` and `applied.undo()`, or `with patch.apply(): ...`.

        Raises:
            ComponentError: The model is not as the patch expects it, e.g. patched already.
        """
        return AppliedPatch(self)

    def save(self, folder: str | Path) -> None:
        """Write the patch alone: two small files, for `load_patch`."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save_patch(self.patch, place)

    def save_model(self, folder: str | Path) -> None:
        """Write the patched model as transformers saves one; in memory the base stays.

        Raises:
            FoldingError: The patch has no place in the weights.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save_patched_model(self.model.language_model, self.patch, place)

    def describe(self) -> Panel:
        """What it changes, and how far."""
        found = self.patch.description
        rows = [("for", self.model.name)]
        if found.component_indices:
            rows.append(("components", write_cell(list(found.component_indices))))
        if found.factor is not None:
            rows.append(("factor", write_cell(found.factor)))
        rows += [(name, write_cell(value)) for name, value in sorted(found.parameters.items())]
        rows.append(
            ("changes", write_cell(sorted(found.tensors)) if found.tensors else "no weight")
        )
        notes = [] if found.obstacle is None else ["by hooks only: it has no place in the weights"]
        return Panel(f"patch {found.intervention}", ("", "value"), rows, notes)


class AppliedPatch:
    """A patch in force. As a context manager it is undone at the end of the block."""

    def __init__(self, patch: ModelPatch) -> None:
        self.patch = patch
        self._undoing = ExitStack()
        language_model, found = patch.model.language_model, patch.patch
        is_hooked = found.description.obstacle is not None or bool(found.description.beside)
        with language_model.lock:
            if is_hooked:
                self._undoing.enter_context(patched_model(language_model, found))
            else:
                self._undoing.callback(apply_patch(language_model, found).undo)

    def undo(self) -> None:
        """Put the model's own parameters and configuration back, byte for byte; once is enough."""
        with self.patch.model.language_model.lock:
            self._undoing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<AppliedPatch: {self.patch.name} on {self.patch.model.name}>"


def load_patch(model: Model, folder: str | Path) -> ModelPatch:
    """Read a patch that `ModelPatch.save` or `eigenshift export --format patch` wrote.

    Args:
        model: What it was made for.
        folder: Holds `patch.safetensors` and `patch.json`.

    Raises:
        ComponentError: It was made for another model.
    """
    place = Path(folder)
    patch = load_files(place / TENSORS_NAME, place / DESCRIPTION_NAME)
    check_base(model.language_model, patch)
    return ModelPatch(model, patch)
