"""The stage of this room: which model it is, and what it looks like."""

from __future__ import annotations

from typing import Annotated, ClassVar

from eigenshift.settings import ModelSettings
from eigenshift.stages.inputs import Inputs, Outside
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage


class Weights(Outside):
    """A model's files, wherever they lie."""

    kind: ClassVar[str] = "weights"
    model: ModelSettings

    def identify(self) -> str:
        """Digest of weights, configuration and tokenizer files."""
        from eigenshift.model.files import identify_model

        return identify_model(self.model).digest


class IdentityInputs(Inputs):
    """The model."""

    weights: Annotated[Weights, Reads("model", fields=("model.id", "model.revision"))]


class IdentityKey(Key):
    """The precision it is loaded in."""

    dtype: Annotated[str, Reads("model.dtype")]


IDENTIFY_MODEL = Stage(
    name="identify_model",
    kind="model",
    version=4,
    inputs=IdentityInputs,
    key=IdentityKey,
    files=("model.json",),
    work="eigenshift.model.description:carry_out",
    runs_model=True,
)
