"""The stage of this room: the patch of one intervention."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Annotated

from eigenshift.patches.requests import Need, PatchRequest
from eigenshift.settings import RefreshSettings
from eigenshift.stages import tables
from eigenshift.stages.edges import HarmlessTexts, HeadStates, Model, SampleFiles, StudyTexts
from eigenshift.stages.inputs import Inputs, Of
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference, FileReference

TENSORS_NAME = "patch.safetensors"
DESCRIPTION_NAME = "patch.json"


FISHER_EDIT_NAME = "fisher_edit.safetensors"


class FisherPlace(str, Enum):
    """What Fisher components are of."""

    head = "head"
    deep = "deep"
    """Every layer that writes into the residual stream, and the head."""


FISHER_PLACES = {
    "eigenshift_fisher": FisherPlace.head,
    "eigenshift_fisher_deep": FisherPlace.deep,
}
"""What each of these interventions changes."""


class FisherInputs(Inputs):
    """The model, toxic positions with the texts they are of, neutral and harmless texts."""

    model: Model
    states: HeadStates
    continuations: StudyTexts
    neutral: SampleFiles
    harmless: HarmlessTexts


class FisherKey(Key):
    """What is changed, in how many terms and rounds, for which budget."""

    place: FisherPlace
    n_terms: Annotated[int, Reads("patch.n_terms", fields=("patch.n_terms", "patch.n_deep_terms"))]
    n_rounds: Annotated[int, Reads("patch.n_rounds")]
    max_perplexity_increase: Annotated[float, Reads("components.max_perplexity_increase")]
    max_tokens: Annotated[int, Reads("evaluation.max_tokens")]
    max_metric_tokens: Annotated[int, Reads("patch.max_metric_tokens")]
    n_resamples: Annotated[int, Reads("components.n_resamples")]
    permute_labels: Annotated[bool, Reads("components.permute_labels")]
    seed: Annotated[int, Reads("components.seed")]
    dtype: Annotated[str, Reads("model.dtype")]

    @classmethod
    def of_place(
        cls, settings: RefreshSettings, place: FisherPlace, max_perplexity_increase: float
    ) -> FisherKey:
        """Of the head or of all layers, within a budget."""
        patch = settings.patch
        return cls.of(
            settings,
            place=place,
            n_terms=patch.n_terms if place is FisherPlace.head else patch.n_deep_terms,
            max_perplexity_increase=max_perplexity_increase,
        )


FIND_FISHER_COMPONENTS = Stage(
    name="find_fisher_components",
    kind="fisher_components",
    version=5,
    inputs=FisherInputs,
    key=FisherKey,
    files=(tables.FISHER_COMPONENTS, FISHER_EDIT_NAME),
    work="eigenshift.patches.fisher.table:carry_out",
    runs_model=True,
)


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
    harmless_texts: HarmlessTexts | None = None
    fisher: Annotated[
        ArtifactReference | None, Of(("fisher_components",), tables.FISHER_COMPONENTS)
    ] = None
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
    harmless_texts: ArtifactReference
    continuations: StudyTexts


class PatchKey(Key):
    """Which patch, and the model's name in its description."""

    request: Annotated[
        PatchRequest,
        Reads("components", fields=("components.seed", "components.max_perplexity_increase")),
    ]
    """What a flow asks for; controls are drawn by the seed, and tuned to the budget."""
    model_id: Annotated[str, Reads("model.model_id", fields=("model.name", "model.id"))]


BUILD_PATCH = Stage(
    name="build_patch",
    kind="patch",
    version=8,
    inputs=PatchInputs,
    key=PatchKey,
    files=(TENSORS_NAME, DESCRIPTION_NAME),
    work="eigenshift.patches.interventions.building:carry_out",
    runs_model=True,
)
