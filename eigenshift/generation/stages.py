"""Stages of this room: prompts chosen, and continued with every arm."""

from __future__ import annotations

from typing import Annotated

from eigenshift.settings import GenerationSettings, PromptSettings
from eigenshift.stages import tables
from eigenshift.stages.edges import Model
from eigenshift.stages.inputs import Inputs, Of
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.running import Piece
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference, FileReference


class PromptInputs(Inputs):
    """The samples of all sources of prompts."""

    samples: Annotated[tuple[ArtifactReference, ...], Of(("samples",), tables.SAMPLES)]


class PromptKey(Key):
    """Which prompts are drawn."""

    prompts: Annotated[PromptSettings, Reads("prompts")]


CHOOSE_PROMPTS = Stage(
    name="choose_prompts",
    kind="prompts",
    version=1,
    inputs=PromptInputs,
    key=PromptKey,
    files=(tables.SELECTION_PROMPTS, tables.EVALUATION_PROMPTS),
    work="eigenshift.generation.prompts:carry_out",
)


class ContinuationInputs(Inputs):
    """The model, one shard of prompts, and the arm's patch; the base has none."""

    model: Model
    prompts: Annotated[FileReference, Of(("prompts",))]
    patch: Annotated[ArtifactReference | None, Of(("patch",))] = None


class ContinuationKey(Key):
    """How continuations are sampled, and the arm's stream of random numbers."""

    generation: Annotated[GenerationSettings, Reads("generation")]
    stream: str
    dtype: Annotated[str, Reads("model.dtype")]


GENERATE_CONTINUATIONS = Stage(
    name="generate_continuations",
    kind="continuations",
    version=3,
    inputs=ContinuationInputs,
    key=ContinuationKey,
    files=(tables.CONTINUATIONS,),
    work="eigenshift.generation.continuations:carry_out",
    runs_model=True,
)
"""Makes the artifacts of several arms in one pass."""

ArmPiece = Piece[ContinuationInputs, ContinuationKey]
"""What the continuations of one arm are made from."""
