"""All settings of a run."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from eigenshift.settings.benchmark import BenchmarkSettings
from eigenshift.settings.components import ComponentSettings, PositionSource
from eigenshift.settings.detection import ActivationSettings, StatisticsSettings
from eigenshift.settings.evaluation import (
    CompareSettings,
    EvaluationSettings,
    GateSettings,
    ScorerQualitySettings,
    TuneSettings,
)
from eigenshift.settings.execution import ExecutionSettings
from eigenshift.settings.fields import Frozen, Location
from eigenshift.settings.generation import GenerationSettings, PromptSettings
from eigenshift.settings.model import ModelSettings
from eigenshift.settings.patch import HarmlessSettings, PatchSettings
from eigenshift.settings.scorers import ScorerSettings
from eigenshift.settings.sources import IngestionSettings, Role, SourceSettings


class RefreshSettings(Frozen):
    """Everything one refresh needs: what to read, what to compute, when to release."""

    # In this order they are in the form of Prefect's UI: what people change is first.
    required_roles: ClassVar[tuple[Role, ...]] = tuple(Role)

    store: Location = Field(
        "./.eigenshift", title="Store", description="Root URL of the store (any fsspec scheme)."
    )
    model: ModelSettings = Field(title="Model", description="The model under study.")
    sources: tuple[SourceSettings, ...] = Field(
        title="Sources", min_length=1, description="Labelled texts, prompts and neutral texts."
    )
    prompts: PromptSettings = Field(
        PromptSettings(), title="Prompts", description="Which prompts are continued."
    )
    generation: GenerationSettings = Field(
        GenerationSettings(), title="Generation", description="How continuations are sampled."
    )
    components: ComponentSettings = Field(
        ComponentSettings(),
        title="Components",
        description="How components are scored and how many are damped.",
    )
    patch: PatchSettings = Field(
        PatchSettings(), title="Patch", description="What is judged and released."
    )
    scorer: ScorerSettings = Field(
        ScorerSettings(), title="Scorer", description="The scorer whose verdicts decide."
    )
    gate: GateSettings = Field(
        GateSettings(), title="Gate", description="When a patch may be released."
    )
    execution: ExecutionSettings = Field(
        ExecutionSettings(),
        title="Execution",
        description="How fast a run goes, never what it finds.",
    )
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(),
        title="Evaluation",
        description="What is measured, with which intervals.",
    )
    harmless: HarmlessSettings = Field(
        HarmlessSettings(),
        title="Harmless text",
        description="In-domain text on which every arm's cost is measured too.",
    )
    ingestion: IngestionSettings = Field(
        IngestionSettings(), title="Ingestion", description="How texts are checked and sharded."
    )
    activations: ActivationSettings = Field(
        ActivationSettings(), title="Activations", description="Which activations are kept."
    )
    statistics: StatisticsSettings = Field(
        StatisticsSettings(), title="Statistics", description="Neuron and layer statistics."
    )
    further_scorers: tuple[ScorerSettings, ...] = Field(
        (),
        title="Further scorers",
        description="They judge the evaluation continuations too: metrics of their own, and a "
        "table of how far scorers agree. They decide nothing.",
    )
    scorer_quality: ScorerQualitySettings = Field(
        ScorerQualitySettings(),
        title="Scorer quality",
        description="How well the scorers themselves do.",
    )
    benchmark: BenchmarkSettings = Field(
        BenchmarkSettings(),
        title="Benchmark",
        description="Questions that base and patched model both answer.",
    )
    tune: TuneSettings = Field(
        TuneSettings(), title="Tuning", description="The grid that tune searches."
    )
    compare: CompareSettings = Field(
        CompareSettings(), title="Comparison", description="The arms that compare shows."
    )

    @model_validator(mode="after")
    def _check_sources(self) -> RefreshSettings:
        names = [source.name for source in self.sources]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"source names must differ; repeated: {', '.join(repeated)}")
        scorers = [scorer.name for scorer in (self.scorer, *self.further_scorers)]
        repeated = sorted({name for name in scorers if scorers.count(name) > 1})
        if repeated:
            raise ValueError(f"scorer names must differ; repeated: {', '.join(repeated)}")
        self._check_gradients()
        if self.gate.max_capability_drop is not None and not self.benchmark.tasks:
            raise ValueError(
                "gate.max_capability_drop bounds what benchmark.tasks measures, and there is none; "
                "name tasks, or leave the bound out"
            )
        missing = [role.value for role in self.required_roles if not self.sources_for(role)]
        if missing:
            raise ValueError(
                f"at least one source of each role is needed; none for: {', '.join(missing)}"
            )
        labelled = [source.name for source in self.sources_for(Role.labelled)]
        if self.compare.unit_dataset not in (None, *labelled):
            raise ValueError(
                f"compare.unit_dataset must name a labelled source: {', '.join(labelled)}"
            )
        return self

    def _check_gradients(self) -> None:
        judges = (self.scorer, *self.scorer.for_languages)
        needs_gradients = self.components.positions is PositionSource.attribution
        without = next((judge.kind for judge in judges if not judge.kind.has_gradients), None)
        generates = Role.prompts in self.required_roles
        if generates and needs_gradients and without is not None:
            raise ValueError(
                "components.positions 'attribution' needs gradients, which a scorer of kind "
                f"{without.value!r} has not; set components.positions to 'occlusion' or 'lexicon'"
            )

    def sources_for(self, role: Role) -> tuple[SourceSettings, ...]:
        """The sources with this role, in the order given."""
        return tuple(source for source in self.sources if source.effective_role is role)


class DetectionSettings(RefreshSettings):
    """What `detect` needs: the same settings, of which it reads those up to the statistics."""

    required_roles: ClassVar[tuple[Role, ...]] = (Role.labelled,)
