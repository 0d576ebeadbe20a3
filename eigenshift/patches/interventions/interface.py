"""What an intervention is given and what it returns; no intervention's own arithmetic.

An intervention is a function from evidence to an edit of the model (`edits.py`), so that all of
them are exported and judged alike. `registry.py` names them and the evidence each reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.components.decomposition import Decomposition
from eigenshift.detection.neuron_statistics import ALL_LANGUAGES
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.requests import Need, PatchRequest


@dataclass(frozen=True)
class Evidence:
    """What an intervention may read: only what its entry in the registry asks for is there.

    Attributes:
        language_model: The unpatched model.
        given: The evidence by kind.
    """

    language_model: LanguageModel
    given: Mapping[Need, Any] = field(default_factory=dict, repr=False)  # holds texts

    @property
    def decomposition(self) -> Decomposition:
        """Of the output head."""
        return cast(Decomposition, self._read(Need.decomposition))

    @property
    def components(self) -> pa.Table:
        """`schemas.COMPONENTS` rows, most toxic first."""
        return self._read(Need.components).sort_by("rank")

    @property
    def head_states(self) -> pa.Table:
        """`schemas.HEAD_STATES` rows."""
        return self._read(Need.head_states)

    @property
    def units(self) -> pa.Table:
        """`schemas.NEURONS` rows of the MLPs' linear layers, pooled by max, on one dataset.

        Each unit once: a dataset of several languages has rows of each of them too.
        """
        units = self._read(Need.units)
        return units.filter(pc.equal(units["language"], ALL_LANGUAGES))

    @property
    def labelled_texts(self) -> pa.Table:
        """`schemas.SAMPLES` rows with labels."""
        return self._read(Need.labelled_texts)

    @property
    def neutral_texts(self) -> pa.Table:
        """`schemas.SAMPLES` rows of neutral texts; half of them calibrate (`calibration.py`)."""
        return self._read(Need.neutral_texts)

    @property
    def harmless_texts(self) -> pa.Table:
        """`schemas.HARMLESS_TEXTS` rows, of which those of use "budget" calibrate."""
        return self._read(Need.harmless_texts)

    @property
    def fisher(self) -> ModelEdit:
        """The change that was found for this intervention and budget."""
        return cast(ModelEdit, self._read(Need.fisher))

    def _read(self, need: Need) -> Any:
        if need not in self.given:
            raise ComponentError(
                f"intervention: expected {need.value} among its evidence, found "
                f"{', '.join(item.value for item in self.given) or 'none'}. Add it to the needs of "
                "its entry in patches/interventions/registry.py."
            )
        return self.given[need]


@dataclass(frozen=True)
class Outcome:
    """What an intervention changes, and how to describe it.

    Attributes:
        edit: The change.
        component_indices: Singular components it damps, empty if it is not about components.
        factor: What gains are multiplied by; None where it is not one number.
        factors: Of each component, in the order of the indices.
        parameters: What it chose by itself, for the patch's description.
    """

    edit: ModelEdit
    component_indices: tuple[int, ...] = ()
    factor: float | None = None
    factors: tuple[float, ...] = ()
    parameters: Mapping[str, float | int | str] = field(default_factory=dict)


Builder = Callable[[Evidence, PatchRequest], Outcome]


def split_states(states: pa.Table) -> tuple[FloatArray, FloatArray]:
    """Toxic and non-toxic head states, each of shape (position, hidden), float64."""
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    values = np.stack(states["state"].to_numpy(zero_copy_only=False)).astype(np.float64)
    return values[is_toxic], values[~is_toxic]
