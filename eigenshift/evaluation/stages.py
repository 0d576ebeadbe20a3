"""Stages of this room: what a patch does, what it costs, and trials of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from typing_extensions import Self

from eigenshift.settings import (
    BlockFormat,
    ComponentScore,
    EvaluationSettings,
    RefreshSettings,
    SamplingSettings,
    ScorerSettings,
    name_sampling_fields,
)
from eigenshift.stages import tables
from eigenshift.stages.edges import (
    Decomposition,
    HarmlessTexts,
    HeadStates,
    Model,
    SampleFile,
    SampleFiles,
    StudyTexts,
)
from eigenshift.stages.inputs import Inputs, Of
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference, FileReference
from eigenshift.toxicity.stages import (
    CaseFile,
    Classifier,
    name_scorer_bounds,
    name_scorer_fields,
)

CHART_NAME = "chart.png"
POINTS_CHART_NAME = "operating_points.png"
RELOAD_NAME = "reload_check.json"

Patch = Annotated[ArtifactReference, Of(("patch",))]
PromptFiles = Annotated[tuple[FileReference, ...], Of(("prompts",))]
Continuations = Annotated[
    Mapping[str, tuple[ArtifactReference, ...]],
    Of(("continuations",), tables.CONTINUATIONS, by_name=True),
]
"""Arm -> its shards."""
Scores = Annotated[
    Mapping[str, tuple[ArtifactReference, ...]], Of(("scores",), tables.SCORES, by_name=True)
]
"""Arm -> its shards, in the order of the continuations."""
FurtherScores = Annotated[
    Mapping[str, tuple[ArtifactReference, ...]],
    Of(("further_scores",), tables.SCORES, by_name=True),
]
Patches = Annotated[Mapping[str, ArtifactReference | None], Of(("patch",))]
"""Arm -> its patch; None is the base."""


class TokenShiftInputs(Inputs):
    """The model, a patch, head states with their texts, and lists of words among the scorers."""

    model: Model
    patch: Patch
    states: HeadStates
    continuations: StudyTexts
    lexicons: Annotated[
        tuple[Classifier, ...],
        Reads("scorer", fields=("scorer.words", "further_scorers[].words")),
    ]


class TokenShiftKey(Key):
    """The precision the model runs in."""

    dtype: Annotated[str, Reads("model.dtype")]


MEASURE_TOKEN_SHIFTS = Stage(
    name="measure_token_shifts",
    kind="token_shifts",
    version=2,
    inputs=TokenShiftInputs,
    key=TokenShiftKey,
    files=(tables.TOKEN_SHIFTS,),
    work="eigenshift.evaluation.token_shifts:carry_out",
    runs_model=True,
)


class DrawInputs(Inputs):
    """The model, a patch, the head's decomposition, and head states with their texts."""

    model: Model
    patch: Patch
    decomposition: Decomposition
    states: HeadStates
    continuations: StudyTexts


class DrawKey(Key):
    """How many draws, of which random numbers."""

    seed: Annotated[int, Reads("components.seed")]
    n_draws: Annotated[int, Reads("gate.n_random_draws")]
    dtype: Annotated[str, Reads("model.dtype")]


DRAW_CONTROLS = Stage(
    name="draw_controls",
    kind="control_draws",
    version=2,
    inputs=DrawInputs,
    key=DrawKey,
    files=(tables.CONTROL_DRAWS,),
    work="eigenshift.evaluation.control_draws:carry_out",
    runs_model=True,
)


class FluencyInputs(Inputs):
    """The model, one shard of neutral samples, and the arms' patches."""

    model: Model
    texts: SampleFile
    patches: Patches


class FluencyKey(Key):
    """The arms, and how much of the shard is read."""

    arms: tuple[str, ...]
    n_texts: Annotated[int, Reads("evaluation.max_texts")]
    """The shard's share of the setting."""
    max_tokens: Annotated[int, Reads("evaluation.max_tokens")]
    dtype: Annotated[str, Reads("model.dtype")]


MEASURE_FLUENCY = Stage(
    name="measure_fluency",
    kind="fluency",
    version=3,
    inputs=FluencyInputs,
    key=FluencyKey,
    files=(tables.FLUENCY,),
    work="eigenshift.evaluation.fluency:carry_out",
    runs_model=True,
)


class IndomainInputs(Inputs):
    """The model, harmless texts of the domain that no arm was made of, and the arms' patches."""

    model: Model
    texts: HarmlessTexts
    patches: Patches


class IndomainKey(Key):
    """The arms, and the precision the model runs in."""

    arms: tuple[str, ...]
    dtype: Annotated[str, Reads("model.dtype")]


MEASURE_INDOMAIN = Stage(
    name="measure_indomain",
    kind="fluency_indomain",
    version=1,
    inputs=IndomainInputs,
    key=IndomainKey,
    files=(tables.FLUENCY,),
    work="eigenshift.evaluation.fluency:carry_out_indomain",
    runs_model=True,
)


class ArmScores(Inputs):
    """What the deciding scorer said of every arm's continuations."""

    scores: Scores


class FurtherArmScores(ArmScores):
    """What a scorer that decides nothing said of every arm's continuations."""

    scores: FurtherScores


class ScorerKey(Key):
    """What of a scorer is read beside its scores."""

    scorer: Annotated[str, Reads("scorer.name")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    max_unscored_share: Annotated[float, Reads("scorer.max_unscored_share")]

    @classmethod
    def of_scorer(cls, scorer: ScorerSettings) -> ScorerKey:
        """Of one scorer, the deciding one or another."""
        return cls(
            scorer=scorer.name,
            toxic_threshold=scorer.toxic_threshold,
            max_unscored_share=scorer.max_unscored_share,
        )


class ComparisonInputs(Inputs):
    """Prompts, continuations, their scores by each scorer, and fluency."""

    prompts: PromptFiles
    continuations: Continuations
    judged: ArmScores
    further: tuple[FurtherArmScores, ...]
    fluency: Annotated[tuple[ArtifactReference, ...], Of(("fluency",), tables.FLUENCY)]
    indomain: Annotated[
        tuple[ArtifactReference, ...], Of(("fluency_indomain",), tables.FLUENCY)
    ] = ()


class ComparisonKey(Key):
    """The arms, intervals, and what is read of each scorer, in the order of the inputs."""

    arms: tuple[str, ...]
    evaluation: Annotated[EvaluationSettings, Reads("evaluation")]
    scorer: Annotated[str, Reads("scorer.name")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    max_unscored_share: Annotated[float, Reads("scorer.max_unscored_share")]
    further: Annotated[
        tuple[ScorerKey, ...],
        Reads(
            "further_scorers",
            lambda scorers: tuple(map(ScorerKey.of_scorer, scorers)),
            fields=name_scorer_bounds("further_scorers[]"),
        ),
    ]


COMPARE_ARMS = Stage(
    name="compare_arms",
    kind="evaluation",
    version=8,
    inputs=ComparisonInputs,
    key=ComparisonKey,
    files=(tables.EVALUATIONS, tables.ARM_PAIRS),
    work="eigenshift.evaluation.comparison:carry_out",
)


class LongScores(ArmScores):
    """What the deciding scorer said of every arm's long continuations."""

    scores: Annotated[
        Mapping[str, tuple[ArtifactReference, ...]],
        Of(("long_scores",), tables.SCORES, by_name=True),
    ]


class LongComparisonInputs(Inputs):
    """Prompts, long continuations of some of them, and their scores."""

    prompts: PromptFiles
    continuations: Annotated[
        Mapping[str, tuple[ArtifactReference, ...]],
        Of(("long_continuations",), tables.CONTINUATIONS, by_name=True),
    ]
    judged: LongScores


class LongComparisonKey(Key):
    """The arms, intervals, refusals' openings, and what is read of the scorer."""

    arms: tuple[str, ...]
    n_tokens: Annotated[int | None, Reads("generation.confirm_tokens")]
    evaluation: Annotated[EvaluationSettings, Reads("evaluation")]
    scorer: Annotated[str, Reads("scorer.name")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    max_unscored_share: Annotated[float, Reads("scorer.max_unscored_share")]


CONFIRM_AT_LENGTH = Stage(
    name="confirm_at_length",
    kind="confirmation",
    version=1,
    inputs=LongComparisonInputs,
    key=LongComparisonKey,
    files=(tables.CONFIRMATIONS,),
    work="eigenshift.evaluation.confirmation:carry_out",
)


class AgreementInputs(Inputs):
    """Continuations, and their scores by each scorer."""

    continuations: Continuations
    judged: ArmScores
    further: tuple[FurtherArmScores, ...]


class AgreementKey(Key):
    """The arms, and what is read of each scorer, in the order of the inputs."""

    arms: tuple[str, ...]
    scorers: Annotated[
        tuple[ScorerKey, ...],
        Reads(
            "further_scorers",
            fields=(*name_scorer_bounds("scorer"), *name_scorer_bounds("further_scorers[]")),
        ),
    ]

    @classmethod
    def of(cls, settings: RefreshSettings, **given: Any) -> Self:  # type: ignore[override]
        """The deciding scorer, then all others."""
        scorers = (settings.scorer, *settings.further_scorers)
        given = {"scorers": tuple(map(ScorerKey.of_scorer, scorers))} | given
        return super().of(settings, **given)


COMPARE_SCORERS = Stage(
    name="compare_scorers",
    kind="scorer_agreement",
    version=1,
    inputs=AgreementInputs,
    key=AgreementKey,
    files=(tables.SCORER_AGREEMENT,),
    work="eigenshift.evaluation.agreement:carry_out",
)


class QualityInputs(Inputs):
    """Scorers, the labelled samples of the run, and functional cases, if there are any."""

    scorers: Annotated[
        tuple[Classifier, ...],
        Reads(
            "scorer",
            fields=(*name_scorer_fields("scorer"), *name_scorer_fields("further_scorers[]")),
        ),
    ]
    samples: SampleFiles
    cases: Annotated[CaseFile | None, Reads("scorer_quality.functional_cases")] = None


class JudgedScorerKey(Key):
    """What a scorer is called, and above which probability it calls a text toxic."""

    scorer: str
    toxic_threshold: float

    @classmethod
    def of_scorer(cls, scorer: ScorerSettings) -> JudgedScorerKey:
        """Of one scorer, the deciding one or another."""
        return cls(scorer=scorer.name, toxic_threshold=scorer.toxic_threshold)


class QualityKey(Key):
    """The scorers in the order of the inputs, which texts they judge, and the intervals."""

    scorers: Annotated[
        tuple[JudgedScorerKey, ...],
        Reads(
            "further_scorers",
            fields=tuple(
                f"{section}.{name}"
                for section in ("scorer", "further_scorers[]")
                for name in ("name", "toxic_threshold")
            ),
        ),
    ]
    n_drawn: Annotated[int, Reads("scorer_quality.n_texts")]
    seed: Annotated[int, Reads("scorer_quality.seed")]
    confidence: Annotated[float, Reads("evaluation.confidence")]

    @classmethod
    def of(cls, settings: RefreshSettings, **given: Any) -> Self:  # type: ignore[override]
        """The deciding scorer, then all others."""
        scorers = (settings.scorer, *settings.further_scorers)
        given = {"scorers": tuple(map(JudgedScorerKey.of_scorer, scorers))} | given
        return super().of(settings, **given)


MEASURE_SCORERS = Stage(
    name="measure_scorers",
    kind="scorer_quality",
    version=1,
    inputs=QualityInputs,
    key=QualityKey,
    files=(tables.SCORER_QUALITY,),
    work="eigenshift.evaluation.scorer_measurement:carry_out",
    runs_model=True,
)


class TabulationInputs(Inputs):
    """An evaluation and its arms' patches."""

    evaluation: Annotated[ArtifactReference, Of(("evaluation",), tables.EVALUATIONS)]
    patches: Patches


class TabulationKey(Key):
    """The arms in their order, and those that have a patch."""

    arms: tuple[str, ...]
    patched: tuple[str, ...]


TABULATE_ARMS = Stage(
    name="tabulate_arms",
    kind="comparison",
    version=4,
    inputs=TabulationInputs,
    key=TabulationKey,
    files=(tables.COMPARISONS, CHART_NAME, POINTS_CHART_NAME),
    work="eigenshift.evaluation.arm_table:carry_out",
)


class ReloadInputs(Inputs):
    """The model, a patch, and one shard of prompts."""

    model: Model
    patch: Patch
    prompts: Annotated[FileReference, Of(("prompts",), tables.EVALUATION_PROMPTS)]


class ReloadKey(Key):
    """The precision the model runs in."""

    dtype: Annotated[str, Reads("model.dtype")]


CHECK_RELOAD = Stage(
    name="check_reload",
    kind="reload_check",
    version=2,
    inputs=ReloadInputs,
    key=ReloadKey,
    files=(RELOAD_NAME,),
    work="eigenshift.evaluation.reload_check:carry_out",
    runs_model=True,
)


class SurvivalInputs(Inputs):
    """The model, a patch, what states and texts it is judged by, and what both models said."""

    model: Model
    patch: Patch
    states: HeadStates
    study: StudyTexts
    neutral: SampleFiles
    continuations: Continuations
    scores: Scores


class SurvivalKey(Key):
    """The arm and the formats, how texts were drawn, and when one is toxic."""

    arm: str
    formats: tuple[BlockFormat, ...]
    is_whole: bool
    max_tokens: Annotated[int, Reads("evaluation.max_tokens")]
    generation: Annotated[
        SamplingSettings, Reads("generation.sampling", fields=name_sampling_fields())
    ]
    n_bootstrap: Annotated[int, Reads("evaluation.n_bootstrap")]
    confidence: Annotated[float, Reads("evaluation.confidence")]
    seed: Annotated[int, Reads("evaluation.seed")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    max_unscored_share: Annotated[float, Reads("scorer.max_unscored_share")]
    dtype: Annotated[str, Reads("model.dtype")]


MEASURE_SURVIVAL = Stage(
    name="measure_survival",
    kind="survival",
    version=1,
    inputs=SurvivalInputs,
    key=SurvivalKey,
    files=(tables.SURVIVAL,),
    work="eigenshift.evaluation.survival:carry_out",
    runs_model=True,
)


class ChoiceInputs(Inputs):
    """What was generated with each candidate on the selection prompts, and its scores."""

    prompts: PromptFiles
    continuations: Continuations
    scores: Scores


class InterventionKey(Key):
    """The candidates, intervals, and what is read of the scorer."""

    arms: tuple[str, ...]
    n_bootstrap: Annotated[int, Reads("evaluation.n_bootstrap")]
    confidence: Annotated[float, Reads("evaluation.confidence")]
    seed: Annotated[int, Reads("evaluation.seed")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    max_unscored_share: Annotated[float, Reads("scorer.max_unscored_share")]


CHOOSE_INTERVENTION = Stage(
    name="choose_intervention",
    kind="intervention_choice",
    version=1,
    inputs=ChoiceInputs,
    key=InterventionKey,
    files=(tables.INTERVENTION_CHOICES,),
    work="eigenshift.evaluation.intervention_choice:carry_out",
)


class ScreeningInputs(Inputs):
    """What the grid is measured on, and the automatic choice's table by least factor."""

    model: Model
    decomposition: Decomposition
    states: HeadStates
    components: Annotated[ArtifactReference, Of(("components",), tables.COMPONENTS)]
    automatic: Annotated[Mapping[float, ArtifactReference], Of(("components",), tables.COMPONENTS)]
    neutral: SampleFiles
    harmless: HarmlessTexts


class ScreeningKey(Key):
    """The grid, its budget, and how long the texts are on which its cost is measured."""

    scores: Annotated[tuple[ComponentScore, ...], Reads("tune.scores")]
    n_components: Annotated[tuple[int, ...], Reads("tune.n_components")]
    factors: Annotated[tuple[float, ...], Reads("tune.factors")]
    automatic_factors: tuple[float, ...]
    max_perplexity_increase: Annotated[float, Reads("tune.max_perplexity_increase")]
    max_tokens: Annotated[int, Reads("evaluation.max_tokens")]


SCREEN_TRIALS = Stage(
    name="screen_trials",
    kind="screening",
    version=5,
    inputs=ScreeningInputs,
    key=ScreeningKey,
    files=(tables.TRIALS,),
    work="eigenshift.evaluation.tuning:carry_out_screening",
    runs_model=True,
)


class FurtherBaseScores(Inputs):
    """What a scorer that decides nothing said of the base's continuations."""

    scores: Annotated[tuple[ArtifactReference, ...], Of(("further_scores",), tables.SCORES)]


class PredictionInputs(Inputs):
    """The screened trials, what they are of, and what the base said to the selection prompts."""

    model: Model
    decomposition: Decomposition
    screening: Annotated[ArtifactReference, Of(("screening",), tables.TRIALS)]
    prompts: PromptFiles
    continuations: Annotated[
        tuple[ArtifactReference, ...], Of(("continuations",), tables.CONTINUATIONS)
    ]
    scores: Annotated[tuple[ArtifactReference, ...], Of(("scores",), tables.SCORES)]
    further: tuple[FurtherBaseScores, ...] = ()


class PredictionKey(ScorerKey):
    """How many trials are foretold, how the base's texts were drawn, and when one is toxic."""

    n_predicted: Annotated[int, Reads("tune.n_predicted")]
    generation: Annotated[
        SamplingSettings, Reads("generation.sampling", fields=name_sampling_fields())
    ]
    n_bootstrap: Annotated[int, Reads("evaluation.n_bootstrap")]
    confidence: Annotated[float, Reads("evaluation.confidence")]
    seed: Annotated[int, Reads("evaluation.seed")]
    further: Annotated[
        tuple[ScorerKey, ...],
        Reads(
            "further_scorers",
            lambda scorers: tuple(map(ScorerKey.of_scorer, scorers)),
            fields=name_scorer_bounds("further_scorers[]"),
        ),
    ]
    dtype: Annotated[str, Reads("model.dtype")]


PREDICT_TRIALS = Stage(
    name="predict_trials",
    kind="predicted_trials",
    version=2,
    inputs=PredictionInputs,
    key=PredictionKey,
    files=(tables.TRIALS, tables.PREDICTED_RATES),
    work="eigenshift.evaluation.predicted_trials:carry_out",
    runs_model=True,
)


class ConfirmationInputs(Inputs):
    """The screened trials, and what was generated with some of them."""

    screening: Annotated[ArtifactReference, Of(("screening", "predicted_trials"), tables.TRIALS)]
    prompts: PromptFiles
    continuations: Continuations
    scores: Scores


class ConfirmationKey(Key):
    """The arms, the budget, intervals, and what is read of the scorer."""

    arms: tuple[str, ...]
    max_perplexity_increase: Annotated[float, Reads("tune.max_perplexity_increase")]
    n_bootstrap: Annotated[int, Reads("evaluation.n_bootstrap")]
    confidence: Annotated[float, Reads("evaluation.confidence")]
    seed: Annotated[int, Reads("evaluation.seed")]
    toxic_threshold: Annotated[float, Reads("scorer.toxic_threshold")]
    max_unscored_share: Annotated[float, Reads("scorer.max_unscored_share")]


CONFIRM_TRIALS = Stage(
    name="confirm_trials",
    kind="trials",
    version=2,
    inputs=ConfirmationInputs,
    key=ConfirmationKey,
    files=(tables.TRIALS, CHART_NAME),
    work="eigenshift.evaluation.tuning:carry_out_confirmation",
)
