"""Stages of this room: from head states to scored components."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from eigenshift.settings import ComponentScore, PositionSource, RefreshSettings
from eigenshift.stages import tables
from eigenshift.stages.edges import (
    Decomposition,
    HarmlessTexts,
    HeadStates,
    Model,
    SampleFiles,
    StudyScores,
    StudyTexts,
)
from eigenshift.stages.inputs import Inputs, Of
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference


class LabelledTextInputs(Inputs):
    """The model and the samples of all labelled sources."""

    model: Model
    samples: SampleFiles


class LabelledTextKey(Key):
    """Which labelled texts are drawn."""

    max_labelled_texts: Annotated[int, Reads("components.max_labelled_texts")]
    seed: Annotated[int, Reads("components.seed")]


ENCODE_LABELLED_TEXT = Stage(
    name="encode_labelled_text",
    kind="labelled_text",
    version=1,
    inputs=LabelledTextInputs,
    key=LabelledTextKey,
    files=(tables.CONTINUATIONS, tables.SCORES, tables.LABELLED_SPANS),
    work="eigenshift.components.labelled_text:carry_out",
    runs_model=True,
)


class HeadStateInputs(Inputs):
    """The model, and all shards of what it said, with scores and toxic words."""

    model: Model
    continuations: StudyTexts
    scores: StudyScores
    positions: Annotated[
        tuple[ArtifactReference, ...], Of(("toxic_positions",), tables.TOXIC_POSITIONS)
    ]


class HeadStateKey(Key):
    """Which positions are taken, and how they are matched."""

    seed: Annotated[int, Reads("components.seed")]
    nontoxic_per_toxic: Annotated[int, Reads("components.nontoxic_per_toxic")]
    min_toxic_positions: Annotated[int, Reads("components.min_toxic_positions")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    is_marked: Annotated[
        bool, Reads("components.positions", lambda positions: positions is PositionSource.spans)
    ]
    """Toxic words are marked in the texts themselves, so all others are harmless."""
    dtype: Annotated[str, Reads("model.dtype")]


COLLECT_HEAD_STATES = Stage(
    name="collect_head_states",
    kind="head_states",
    version=2,
    inputs=HeadStateInputs,
    key=HeadStateKey,
    files=(tables.HEAD_STATES,),
    work="eigenshift.components.head_states:carry_out",
    runs_model=True,
)


class HarmlessInputs(Inputs):
    """The model, what its base said with scores, and the samples of all labelled sources."""

    model: Model
    continuations: StudyTexts
    scores: StudyScores
    samples: SampleFiles


class HarmlessKey(Key):
    """What the texts are for, how many of them, and what is harmless."""

    for_calibration: bool
    n_continuations: Annotated[
        int,
        Reads(
            "harmless.n_continuations", fields=("harmless.n_continuations", "harmless.n_evaluated")
        ),
    ]
    n_labelled: Annotated[
        int, Reads("harmless.n_labelled", fields=("harmless.n_labelled", "harmless.n_evaluated"))
    ]
    max_tokens: Annotated[int, Reads("harmless.max_tokens")]
    seed: Annotated[int, Reads("harmless.seed")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]

    @classmethod
    def of_evaluation(cls, settings: RefreshSettings) -> Self:
        """Of texts that no arm was made of, as many of each kind as are evaluated."""
        n_texts = settings.harmless.n_evaluated
        return cls.of(settings, for_calibration=False, n_continuations=n_texts, n_labelled=n_texts)


CHOOSE_HARMLESS_TEXTS = Stage(
    name="choose_harmless_texts",
    kind="harmless_texts",
    version=1,
    inputs=HarmlessInputs,
    key=HarmlessKey,
    files=(tables.HARMLESS_TEXTS,),
    work="eigenshift.components.harmless_texts:carry_out",
    runs_model=True,
)


class DecompositionInputs(Inputs):
    """The model."""

    model: Model


class DecompositionKey(Key):
    """How many components, and the seed where they are found approximately."""

    dtype: Annotated[str, Reads("model.dtype")]
    n_decomposed: Annotated[int | None, Reads("components.n_decomposed")]
    seed: Annotated[int | None, Reads("components.seed")]

    @classmethod
    def of(cls, settings: RefreshSettings, **given: Any) -> Self:  # type: ignore[override]
        """The exact method draws no random numbers."""
        if settings.components.n_decomposed is None:
            given = {"seed": None} | given
        return super().of(settings, **given)


DECOMPOSITION_NAME = "decomposition.safetensors"
DECOMPOSE_HEAD = Stage(
    name="decompose_head",
    kind="decomposition",
    version=2,
    inputs=DecompositionInputs,
    key=DecompositionKey,
    files=(DECOMPOSITION_NAME,),
    work="eigenshift.components.decomposition:carry_out",
    runs_model=True,
)


class ComponentInputs(Inputs):
    """The model, its head's decomposition, head states, neutral and harmless texts."""

    model: Model
    decomposition: Decomposition
    states: HeadStates
    neutral: SampleFiles
    harmless: HarmlessTexts


class ChoiceKey(Key):
    """How components are scored and how many are damped, how far.

    Of `factor` and `min_factor` one is in force: the first of a number of components that is asked
    for, the second of the automatic choice; the other is 0 here, whatever the settings say. The one
    enters the fingerprint as "factor", the name that both had, so that artifacts made before keep
    theirs.
    """

    score: Annotated[ComponentScore, Reads("components.score")]
    n_components: Annotated[int | None, Reads("components.n_components")]
    max_components: Annotated[int, Reads("components.max_components")]
    false_discovery_rate: Annotated[float, Reads("components.false_discovery_rate")]
    min_effect_size: Annotated[float, Reads("components.min_effect_size")]
    max_perplexity_increase: Annotated[float, Reads("components.max_perplexity_increase")]
    factor: Annotated[float, Reads("components.factor")]
    min_factor: Annotated[float, Reads("components.min_factor")]
    factor_steps: Annotated[int, Reads("components.factor_steps")]
    n_resamples: Annotated[int, Reads("components.n_resamples")]
    permute_labels: Annotated[bool, Reads("components.permute_labels")]
    seed: Annotated[int, Reads("components.seed")]

    @classmethod
    def of(cls, settings: RefreshSettings, **given: Any) -> Self:  # type: ignore[override]
        """Only the factor in force."""
        idle = "factor" if settings.components.n_components is None else "min_factor"
        return super().of(settings, **{idle: 0.0} | given)

    @model_serializer(mode="wrap")
    def _keep_one_factor(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        least = document.pop("min_factor")
        return document | ({"factor": least} if self.n_components is None else {})


class ComponentKey(Key):
    """The choice, and how long the texts are on which its cost is measured."""

    components: ChoiceKey
    max_tokens: Annotated[int, Reads("evaluation.max_tokens")]


SCORE_COMPONENTS = Stage(
    name="score_components",
    kind="components",
    version=7,
    inputs=ComponentInputs,
    key=ComponentKey,
    files=(tables.COMPONENTS, tables.COMPONENT_CONTEXTS),
    work="eigenshift.components.table:carry_out",
    runs_model=True,
)
