"""Every setting of a run: one frozen model, and the only place where defaults live.

Reads: presets (`presets/*.yaml`), a YAML file, `key=value` overrides. Writes nothing.
Each stage receives only the part it reads; that part, not the whole, enters the stage's
fingerprint, so changing one setting redoes exactly the stages that read it. What changes only
how fast a run is, never what it finds, lives in `ExecutionSettings` and enters no fingerprint.

The same models are the typed form of the Prefect UI: hence a title and a description on every
field, literal defaults (a form does not show default factories) and `extra="forbid"`. What a stage
makes of them is in its key (`stages/keys.py`).

    run.py         all settings of a run
    sources.py     which texts are read, and how they are checked
    model.py       the model under study
    detection.py   activations and their statistics
    generation.py  prompts and continuations
    scorers.py     what judges continuations
    judges.py      what a language model is asked that judges them
    components.py  how components are scored and chosen
    patch.py       what is judged and released, and harmless text for every budget
    evaluation.py  metrics, the gate, the search, the comparison
    benchmark.py   questions that base and patched model answer
    execution.py   how fast and where; never what is found
    exporting.py   choices of an export, part of no run
    training.py    choices of a scorer's training, part of no run
    fields.py      what several sections share
    loading.py     presets, files, overrides
    commented.py   a settings file with comments, to go on from
    complaints.py  what is said of settings that do not fit
    presets/       settings that are shipped
"""

from __future__ import annotations

from eigenshift.settings.benchmark import BenchmarkSettings
from eigenshift.settings.commented import compose_settings, find_absent
from eigenshift.settings.complaints import list_setting_paths
from eigenshift.settings.components import (
    ComponentScore,
    ComponentSettings,
    PositionSource,
    StateSource,
)
from eigenshift.settings.detection import (
    ActivationSettings,
    Pooling,
    Site,
    SitePooling,
    StatisticsSettings,
)
from eigenshift.settings.evaluation import (
    CompareSettings,
    EvaluationSettings,
    GateSettings,
    ScorerQualitySettings,
    TuneSettings,
)
from eigenshift.settings.execution import ExecutionSettings, Overlap, Placement, Runner
from eigenshift.settings.exporting import (
    BlockFormat,
    ExportCheck,
    ExportFormat,
    ExportTarget,
    Form,
)
from eigenshift.settings.fields import FRACTION, SECRET_IN_URL, Frozen, Location
from eigenshift.settings.generation import (
    Backend,
    GenerationSettings,
    PromptSettings,
    SamplingSettings,
    name_sampling_fields,
)
from eigenshift.settings.judges import PLACEHOLDER, ChatUse, JudgeSettings
from eigenshift.settings.loading import (
    PRESET_FOLDER,
    AnySettings,
    find_preset,
    list_presets,
    load_preset,
    load_settings,
    load_settings_as,
    map_locations,
    override_settings,
    parse_section,
    parse_settings,
    parse_settings_as,
    parse_source,
    settle_settings,
)
from eigenshift.settings.model import ModelSettings
from eigenshift.settings.patch import HarmlessSettings, PatchSettings
from eigenshift.settings.run import DetectionSettings, RefreshSettings
from eigenshift.settings.scorers import (
    LanguageScorerSettings,
    PlainScorerSettings,
    ScorerKind,
    ScorerSettings,
    VerdictRule,
)
from eigenshift.settings.sources import (
    COLUMN_FORMATS,
    DEFAULT_ROLES,
    ColumnMapping,
    IngestionSettings,
    Role,
    SourceFormat,
    SourceSettings,
)
from eigenshift.settings.training import FittingMethod, NgramChoice, TrainingSettings

__all__ = [
    "COLUMN_FORMATS",
    "DEFAULT_ROLES",
    "FRACTION",
    "PLACEHOLDER",
    "PRESET_FOLDER",
    "SECRET_IN_URL",
    "ActivationSettings",
    "AnySettings",
    "Backend",
    "BenchmarkSettings",
    "BlockFormat",
    "ChatUse",
    "ColumnMapping",
    "CompareSettings",
    "ComponentScore",
    "ComponentSettings",
    "DetectionSettings",
    "EvaluationSettings",
    "ExecutionSettings",
    "ExportCheck",
    "ExportFormat",
    "ExportTarget",
    "FittingMethod",
    "Form",
    "Frozen",
    "GateSettings",
    "GenerationSettings",
    "HarmlessSettings",
    "IngestionSettings",
    "JudgeSettings",
    "LanguageScorerSettings",
    "Location",
    "ModelSettings",
    "NgramChoice",
    "Overlap",
    "PatchSettings",
    "Placement",
    "PlainScorerSettings",
    "Pooling",
    "PositionSource",
    "PromptSettings",
    "RefreshSettings",
    "Role",
    "Runner",
    "SamplingSettings",
    "ScorerKind",
    "ScorerQualitySettings",
    "ScorerSettings",
    "Site",
    "SitePooling",
    "SourceFormat",
    "SourceSettings",
    "StateSource",
    "StatisticsSettings",
    "TrainingSettings",
    "TuneSettings",
    "VerdictRule",
    "compose_settings",
    "find_absent",
    "find_preset",
    "list_presets",
    "list_setting_paths",
    "load_preset",
    "load_settings",
    "load_settings_as",
    "map_locations",
    "name_sampling_fields",
    "override_settings",
    "parse_section",
    "parse_settings",
    "parse_settings_as",
    "parse_source",
    "settle_settings",
]
