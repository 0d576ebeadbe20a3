"""Stages of this room: prompts chosen, and continued with every arm."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from eigenshift.settings import (
    Backend,
    PromptSettings,
    SamplingSettings,
    name_sampling_fields,
)
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


class BackendKey(Key):
    """What draws continuations: with other random numbers, and rounded otherwise."""

    backend: Annotated[Backend, Reads("generation.backend")] = Backend.transformers

    @model_serializer(mode="wrap")
    def _leave_out_our_own(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Our own loop is as it was before there was another, and so are its fingerprints."""
        document: dict[str, Any] = handler(self)
        if self.backend is Backend.transformers:
            del document["backend"]
        return document


class ContinuationKey(BackendKey):
    """How continuations are sampled, and the arm's stream of random numbers."""

    generation: Annotated[
        SamplingSettings,
        Reads("generation.sampling", fields=name_sampling_fields()),
    ]
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


class LongContinuationKey(BackendKey):
    """How long continuations are sampled, of how many prompts of the shard; the arm's stream."""

    generation: Annotated[
        SamplingSettings,
        Reads(
            "generation.long_sampling",
            fields=(
                *name_sampling_fields("n_tokens", "n_samples"),
                "generation.confirm_tokens",
                "generation.confirm_samples",
            ),
        ),
    ]
    n_prompts: Annotated[int, Reads("generation.confirm_prompts")]
    """The shard's share of the setting."""
    stream: str
    dtype: Annotated[str, Reads("model.dtype")]


GENERATE_LONG = Stage(
    name="generate_long_continuations",
    kind="long_continuations",
    version=1,
    inputs=ContinuationInputs,
    key=LongContinuationKey,
    files=(tables.CONTINUATIONS,),
    work="eigenshift.generation.continuations:carry_out_long",
    runs_model=True,
)
"""A kind of its own, so that the evaluation's continuations are never mixed with these."""

LongArmPiece = Piece[ContinuationInputs, LongContinuationKey]
"""What the long continuations of one arm are made from."""
