"""The stage of this room: the patch of one intervention."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from eigenshift.patches.requests import Need, PatchRequest
from eigenshift.stages import tables
from eigenshift.stages.edges import Model, SampleFiles
from eigenshift.stages.inputs import Inputs, Of
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference, FileReference

TENSORS_NAME = "patch.safetensors"
DESCRIPTION_NAME = "patch.json"


class PatchInputs(Inputs):
    """The model and the evidence an intervention reads, by kind (`Need`); others are left out."""

    model: Model
    components: Annotated[ArtifactReference | None, Of(("components",), tables.COMPONENTS)] = None
    decomposition: Annotated[ArtifactReference | None, Of(("decomposition",))] = None
    head_states: Annotated[ArtifactReference | None, Of(("head_states",), tables.HEAD_STATES)] = (
        None
    )
    labelled_texts: Annotated[
        tuple[FileReference, ...], Of(("samples",), tables.SAMPLES, is_optional=True)
    ] = ()
    neutral_texts: SampleFiles = ()
    units: Annotated[
        tuple[ArtifactReference, ...], Of(("neurons",), tables.NEURONS, is_optional=True)
    ] = ()

    def keep(self, needs: Collection[Need]) -> PatchInputs:
        """Only the evidence that is needed: nothing else enters the fingerprint."""
        needed = {need.value: getattr(self, need.value) for need in needs}
        return PatchInputs(model=self.model, **needed)


class HeadEvidence(PatchInputs):
    """What a study of the head finds: enough for every intervention on the head."""

    components: ArtifactReference
    decomposition: ArtifactReference
    head_states: ArtifactReference


class PatchKey(Key):
    """Which patch, and the model's name in its description."""

    request: Annotated[PatchRequest, Reads("components", fields=("components.seed",))]
    """What a flow asks for; the random control is drawn by the seed."""
    model_id: Annotated[str, Reads("model.model_id", fields=("model.name", "model.id"))]


BUILD_PATCH = Stage(
    name="build_patch",
    kind="patch",
    version=4,
    inputs=PatchInputs,
    key=PatchKey,
    files=(TENSORS_NAME, DESCRIPTION_NAME),
    work="eigenshift.patches.interventions:carry_out",
    runs_model=True,
)
