"""Every setting of a run: one frozen model, and the only place where defaults live.

Reads: presets (`eigenshift/presets/*.yaml`), a YAML file, `key=value` overrides. Writes nothing.
Each stage receives only the part it reads; that part, not the whole, enters the stage's
fingerprint, so changing one setting redoes exactly the stages that read it. What changes only
how fast a run is, never what it finds, lives in `ExecutionSettings` and enters no fingerprint.

The same models are the typed form of the Prefect UI: hence a title and a description on every
field, literal defaults (a form does not show default factories) and `extra="forbid"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from eigenshift.errors import SettingsError
from eigenshift.locations import has_secret

PRESET_FOLDER = Path(__file__).parent / "presets"
FRACTION = Annotated[float, Field(ge=0.0, le=1.0)]


SECRET_IN_URL = "secret_in_url"  # noqa: S105 - the name of an error


def _refuse_secret(location: str) -> str:
    if has_secret(location):
        raise PydanticCustomError(
            SECRET_IN_URL,
            "credentials do not belong in a URL, which is written into records; give them by the "
            "environment or a Prefect block (the URL is not shown)",
        )
    return location


Location = Annotated[str, AfterValidator(_refuse_secret)]
"""A path or URL."""


class Frozen(BaseModel):
    """A settings model: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )


class SourceFormat(str, Enum):
    """File formats we read in their original schema (see `eigenshift/datasets/`)."""

    jigsaw = "jigsaw"
    jigsaw_unintended_bias = "jigsaw_unintended_bias"
    jigsaw_multilingual = "jigsaw_multilingual"
    toxicn = "toxicn"
    toxic_spans = "toxic_spans"
    real_toxicity_prompts = "real_toxicity_prompts"
    sentences = "sentences"
    huggingface = "huggingface"


class Role(str, Enum):
    """What a source is for."""

    labelled = "labelled"
    prompts = "prompts"
    neutral = "neutral"


DEFAULT_ROLES = {
    SourceFormat.real_toxicity_prompts: Role.prompts,
    SourceFormat.sentences: Role.neutral,
}


class ColumnMapping(Frozen):
    """Which column holds what. Only for `huggingface` and `sentences` sources."""

    text: str = Field("text", description="Column with the text (or the prompt).")
    label: str | None = Field(
        None, description="Column with the label: 0/1, true/false, or a score from 0 to 1."
    )
    language: str | None = Field(None, description="Column with a language code, if any.")
    id: str | None = Field(None, description="Column with the row's own id, if any.")


class SourceSettings(Frozen):
    """One dataset to read."""

    name: str = Field(
        title="Name",
        description="Name of the dataset in every table, e.g. 'jigsaw'.",
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
    )
    format: SourceFormat = Field(title="Format", description="The file's original schema.")
    uri: Location = Field(
        title="Location",
        description="A path or URL (any fsspec scheme), globs allowed; for 'huggingface' an id.",
        min_length=1,
    )
    labels_uri: Location | None = Field(
        None, description="Jigsaw test set only: test_labels.csv, joined to test.csv by id."
    )
    role: Role | None = Field(
        None,
        title="Role",
        description="What the texts are for; by default what the format suggests.",
    )
    split: str = Field("train", description="Name of the split in the samples table.")
    language: str = Field(
        "auto",
        description="Language code of the texts; 'auto' tells Chinese from English by script.",
    )
    toxic_threshold: FRACTION = Field(
        0.5,
        description="Where labels are scores: at or above this is toxic "
        "(RealToxicityPrompts: strictly above, as its authors do).",
    )
    columns: ColumnMapping = Field(
        ColumnMapping(),
        title="Columns",
        description="Column names ('huggingface' and 'sentences' only).",
    )
    configuration: str | None = Field(None, description="Hugging Face dataset configuration.")
    revision: str | None = Field(None, description="Hugging Face dataset revision (pin a commit).")
    max_rows: int | None = Field(
        None,
        ge=1,
        description="Read only this many rows per file, from the top. The rest is not read at all.",
    )

    @property
    def effective_role(self) -> Role:
        """The role asked for, or the one the format suggests."""
        return self.role or DEFAULT_ROLES.get(self.format, Role.labelled)

    @model_validator(mode="after")
    def _check_combination(self) -> SourceSettings:
        if self.labels_uri is not None and self.format is not SourceFormat.jigsaw:
            raise ValueError("labels_uri belongs to format 'jigsaw' only")
        is_mapped = self.format in (SourceFormat.huggingface, SourceFormat.sentences)
        if is_mapped and self.effective_role is Role.labelled and self.columns.label is None:
            raise ValueError(f"a labelled {self.format.value} source needs columns.label")
        return self


class IngestionSettings(Frozen):
    """How texts are checked and sharded."""

    max_characters: int = Field(
        20_000, ge=1, description="Longer texts are rejected (kept in rejected_rows with a reason)."
    )
    rows_per_shard: int = Field(2_000, ge=1, description="Samples per Parquet shard.")


class ModelSettings(Frozen):
    """The causal language model under study."""

    id: Location = Field(
        title="Model", description="Hugging Face id, or a local or remote folder.", min_length=1
    )
    name: str | None = Field(
        None,
        description="Name for runs and releases; by default the id.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$",
    )
    revision: str | None = Field(
        None, description="Revision on the hub; pin a commit for runs that must repeat."
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="Precision of the forward pass ('auto': as stored)."
    )

    @property
    def model_id(self) -> str:
        """Name in the runs and releases views."""
        return self.name or self.id


class Site(str, Enum):
    """Where in a layer activations are read."""

    residual = "residual"
    mlp_activation = "mlp_activation"
    mlp_up = "mlp_up"
    mlp_gate = "mlp_gate"
    mlp_down = "mlp_down"


class Pooling(str, Enum):
    """How a sequence of activations becomes one value per unit, over real tokens only."""

    max = "max"
    mean = "mean"
    last = "last"


class SitePooling(Frozen):
    """One column of the activations table."""

    site: Site = Field(description="residual: a layer's output; mlp_*: inside its MLP.")
    pooling: Pooling = Field(description="Reduction over the text's tokens.")

    @property
    def column(self) -> str:
        """Name of the Parquet column."""
        return f"{self.site.value}_{self.pooling.value}"


class ActivationSettings(Frozen):
    """Which activations are kept, and how precisely."""

    sites: tuple[SitePooling, ...] = Field(
        (
            SitePooling(site=Site.mlp_activation, pooling=Pooling.max),
            SitePooling(site=Site.residual, pooling=Pooling.mean),
        ),
        min_length=1,
        description="Sites and poolings, one column each.",
    )
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="Layers to read, 0 = first; empty means all."
    )
    precision: Literal["float16", "float32"] = Field(
        "float16", description="Precision of the stored values."
    )
    max_tokens: int = Field(
        512, ge=1, description="Longer texts are truncated to this many tokens."
    )


class StatisticsSettings(Frozen):
    """Neuron and layer statistics."""

    n_folds: int = Field(5, ge=2, le=20, description="Folds of the layer probe's cross-validation.")
    ridge: float = Field(
        1.0, gt=0, description="Ridge penalty of the probe, on standardised features."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of all intervals here.")
    n_resamples: int = Field(
        200, ge=20, le=10_000, description="Bootstrap resamples for the stability of units."
    )
    top_units: int = Field(
        50, ge=1, description="How many of the best units of a site are compared for overlap."
    )
    max_probe_samples: int | None = Field(
        20_000,
        ge=100,
        description="Layer probes and clusters use at most this many samples of a dataset, chosen "
        "by a digest of their ids; empty means all. Bounds memory (docs/scale.md).",
    )
    seed: int = Field(0, ge=0, description="Seed of the resamples.")


class PromptSettings(Frozen):
    """Which prompts are continued. Components are chosen and judged on different prompts."""

    n_selection: int = Field(500, ge=1, description="Prompts from which components are chosen.")
    n_evaluation: int = Field(500, ge=1, description="Other prompts, on which the patch is judged.")
    min_toxicity: FRACTION | None = Field(
        None, description="Only prompts scored above this (the paper: 0.5); empty means all."
    )
    prompts_per_shard: int = Field(50, ge=1, description="Prompts per generation shard.")
    seed: int = Field(0, ge=0, description="Seed of the choice of prompts.")


class GenerationSettings(Frozen):
    """Sampled continuations (design: 25 per prompt, 20 new tokens, top-p 0.95)."""

    n_samples: int = Field(25, ge=1, description="Continuations per prompt.")
    n_tokens: int = Field(20, ge=1, description="New tokens per continuation.")
    min_tokens: int = Field(
        1,
        ge=0,
        description="The end-of-text token is not drawn before this many tokens; 0 allows "
        "empty continuations, which cannot be scored.",
    )
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus; 1 samples from everything.")
    temperature: float = Field(1.0, gt=0, description="Softmax temperature; top-k is off.")
    max_prompt_tokens: int = Field(
        128, ge=1, description="Only the last this many tokens of a prompt are used."
    )
    seed: int = Field(0, ge=0, description="Seed; each (prompt, sample) has its own stream.")


class ScorerKind(str, Enum):
    """What judges continuations (see `eigenshift/scorers/`)."""

    detoxify = "detoxify"
    classifier = "classifier"
    lexicon = "lexicon"


class Verdict(str, Enum):
    """How a classifier's outputs become a probability of being toxic."""

    probability = "probability"
    argmax = "argmax"


class PlainScorerSettings(Frozen):
    """What judges how toxic a text is."""

    name: str = Field(
        "detoxify",
        description="Name of the scorer in the tables; by default its kind.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    )
    kind: ScorerKind = Field(
        ScorerKind.detoxify,
        description="detoxify; classifier: any Hugging Face text classifier; lexicon: a file of "
        "words, 1 where one occurs and else 0.",
    )
    model_type: Literal[
        "original", "unbiased", "multilingual", "original-small", "unbiased-small"
    ] = Field(
        "original",
        description="detoxify: which model; downloaded unless a checkpoint is given.",
    )
    checkpoint: Location | None = Field(
        None,
        description="detoxify: local or remote checkpoint; it must open with weights only.",
    )
    config_folder: Location | None = Field(
        None,
        description="detoxify: folder with config.json and tokenizer files, for use without a hub.",
    )
    model: Location | None = Field(
        None, description="classifier: hub id, local or remote folder; safetensors only."
    )
    revision: str | None = Field(None, description="classifier: revision on the hub; pin a commit.")
    words: Location | None = Field(
        None,
        description="lexicon: file with a word a line (or .csv, .json). Words with spaces around "
        "them count whole, Chinese ones anywhere.",
    )
    label: str | None = Field(
        None,
        description="The toxic output, by name or index; empty: 'toxicity' (detoxify) or 'toxic'.",
    )
    verdict: Verdict = Field(
        Verdict.probability,
        description="argmax (classifier): toxic where the toxic label is the likeliest one.",
    )
    toxic_threshold: FRACTION = Field(0.5, description="A probability above this counts as toxic.")
    max_unscored_share: FRACTION = Field(
        0.02, description="Above this share of unscored continuations the run fails."
    )

    @property
    def effective_label(self) -> str:
        """The label asked for, or the usual one of its kind."""
        return self.label or ("toxicity" if self.kind is ScorerKind.detoxify else "toxic")

    @model_validator(mode="before")
    @classmethod
    def _name_by_kind(cls, document: Any) -> Any:
        is_unnamed = isinstance(document, Mapping) and "name" not in document
        if is_unnamed and (kind := document.get("kind")) is not None:
            return {**document, "name": getattr(kind, "value", kind)}
        return document

    @model_validator(mode="after")
    def _check_kind(self) -> PlainScorerSettings:
        belongs = {
            "checkpoint": ScorerKind.detoxify,
            "config_folder": ScorerKind.detoxify,
            "model": ScorerKind.classifier,
            "revision": ScorerKind.classifier,
            "words": ScorerKind.lexicon,
        }
        for field, kind in belongs.items():
            if getattr(self, field) is not None and self.kind is not kind:
                raise ValueError(f"{field} belongs to kind {kind.value!r} only")
        if self.kind is ScorerKind.classifier and self.model is None:
            raise ValueError("kind 'classifier' needs model: a folder or hub id")
        if self.kind is ScorerKind.lexicon and self.words is None:
            raise ValueError("kind 'lexicon' needs words: a file")
        if self.verdict is Verdict.argmax and self.kind is not ScorerKind.classifier:
            raise ValueError("verdict 'argmax' belongs to kind 'classifier' only")
        if self.verdict is Verdict.argmax and self.toxic_threshold != 0.5:
            raise ValueError("verdict 'argmax' decides by itself: leave toxic_threshold at 0.5")
        return self


class LanguageScorerSettings(PlainScorerSettings):
    """A scorer for the texts of one language."""

    language: Literal["en", "zh"] = Field(
        description="Language of the texts it judges, told by script as for sources."
    )


class ScorerSettings(PlainScorerSettings):
    """What judges how toxic a continuation is."""

    for_languages: tuple[LanguageScorerSettings, ...] = Field(
        (),
        description="Scorers that judge the texts of one language in its place, e.g. a Chinese "
        "classifier beside an English one.",
    )

    @model_validator(mode="after")
    def _check_languages(self) -> ScorerSettings:
        languages = [part.language for part in self.for_languages]
        if len(set(languages)) < len(languages):
            raise ValueError("for_languages: at most one scorer for each language")
        if any(part.toxic_threshold != self.toxic_threshold for part in self.for_languages):
            raise ValueError("for_languages: toxic_threshold must be the scorer's own")
        return self


class ComponentScore(str, Enum):
    """How components are ranked (design.md section 2)."""

    effect_size = "effect_size"
    abs_delta = "abs_delta"
    auroc = "auroc"
    logit_gain = "logit_gain"
    release = "release"


class PositionSource(str, Enum):
    """What says where a toxic word is."""

    attribution = "attribution"
    occlusion = "occlusion"
    lexicon = "lexicon"
    spans = "spans"

    @property
    def asks_scorer(self) -> bool:
        """Whether the toxicity classifier decides."""
        return self in (PositionSource.attribution, PositionSource.occlusion)


class StateSource(str, Enum):
    """Which texts the head's states are taken from."""

    generations = "generations"
    labelled_text = "labelled_text"


class ComponentSettings(Frozen):
    """How components are scored and how many are damped."""

    states_from: StateSource = Field(
        StateSource.generations,
        description="generations: the model's own continuations of the selection prompts; "
        "labelled_text: the labelled samples, read by the model (teacher-forced).",
    )
    positions: PositionSource = Field(
        PositionSource.attribution,
        description="Where a toxic word is, by the scorer's gradient x input checked by occlusion; "
        "occlusion: every word left out in turn; lexicon: a list of words; spans: the labelled "
        "texts' own (column 'spans').",
    )
    lexicon: Location | None = Field(
        None,
        description="positions 'lexicon': file with a word or phrase a line (or .csv, .json), "
        "found at word boundaries.",
    )
    max_labelled_texts: int = Field(
        1_000, ge=2, description="states_from 'labelled_text': at most so many, half of them toxic."
    )

    score: ComponentScore = Field(
        ComponentScore.effect_size,
        title="Score",
        description="Ranking; 'release' reproduces the published code, for comparison only.",
    )
    n_decomposed: int | None = Field(
        None,
        ge=1,
        description="Decompose only so many leading components, approximately (randomised), where "
        "the head is too wide for the exact method; empty: all, exactly.",
    )
    n_components: int | None = Field(
        None, ge=1, description="How many to damp; empty: as many as pass the bounds below."
    )
    max_components: int = Field(64, ge=1, description="Upper bound when chosen automatically.")
    false_discovery_rate: float = Field(
        0.05, gt=0, lt=1, description="Benjamini-Hochberg bound on the automatic choice."
    )
    min_effect_size: float = Field(
        0.0,
        ge=0,
        description="Smallest |difference| / pooled sd of an automatic choice; benefit and cost "
        "are measured anyway.",
    )
    max_perplexity_increase: float = Field(
        0.05,
        ge=0,
        description="Fluency budget of the automatic choice, on neutral texts kept apart for it.",
    )
    n_resamples: int = Field(
        1_000, ge=20, le=10_000, description="Resamples of the prompts for the choice's stability."
    )
    factor: FRACTION = Field(
        0.0,
        description="Singular values are multiplied by this, or, chosen automatically, by no less: "
        "0 removes, 1 changes nothing.",
    )
    factor_steps: int = Field(
        8,
        ge=1,
        le=16,
        description="The automatic choice lowers each component's factor in so many steps, each "
        "only if it is worth its cost; 1: all the way or not at all.",
    )
    nontoxic_per_toxic: int = Field(
        4, ge=1, description="Matched non-toxic positions per toxic one (same step and language)."
    )
    min_toxic_positions: int = Field(
        20, ge=2, description="Fewer toxic positions than this and the run stops with a reason."
    )
    min_attribution: FRACTION = Field(
        0.1, description="A word is toxic if removing it lowers the toxicity by at least this."
    )
    permute_labels: bool = Field(
        False,
        description="Control run: shuffle which positions are toxic before components are scored. "
        "Whatever is found then is noise, and the gate must hold it.",
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the matching, the resamples, the random control arm and the shuffle.",
    )

    @model_validator(mode="after")
    def _check_positions(self) -> ComponentSettings:
        needs_list = self.positions is PositionSource.lexicon
        if needs_list != (self.lexicon is not None):
            raise ValueError("positions 'lexicon' and lexicon (a file) belong together")
        is_labelled = self.states_from is StateSource.labelled_text
        if self.positions is PositionSource.spans and not is_labelled:
            raise ValueError("positions 'spans' needs states_from 'labelled_text'")
        return self


class EvaluationSettings(Frozen):
    """What is measured, on how much text, with which intervals."""

    max_texts: int = Field(2_000, ge=1, description="Neutral texts for perplexity.")
    max_tokens: int = Field(256, ge=2, description="Longer neutral texts are truncated.")
    n_bootstrap: int = Field(2_000, ge=100, description="Bootstrap replicates.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of every interval.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class GateSettings(Frozen):
    """When a patch may be released."""

    max_perplexity_increase: float = Field(
        0.10, ge=0, description="Largest relative rise of neutral perplexity."
    )
    max_kl_to_base: float = Field(
        0.2,
        ge=0,
        description="Largest mean divergence from the base on neutral text, nats a token.",
    )
    min_toxicity_reduction: FRACTION = Field(
        0.0, description="Smallest relative reduction of the toxicity rate."
    )
    require_beats_random: bool = Field(
        True, description="The patch must beat random components of the same number and factor."
    )
    n_random_draws: int = Field(
        199,
        ge=0,
        description="Random choices of as many components that the patch is compared with on the "
        "cached toxic positions, without generating; 0 leaves the comparison out.",
    )
    max_random_share: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Largest chance that a random choice lowers the toxic tokens as far; "
        "one draw of n counts 1 / (n + 1).",
    )
    max_slice_toxicity_increase: FRACTION = Field(
        0.02,
        description="Largest rise of the toxicity rate in any slice (language, kind of prompt, "
        "identity mentions, further scorer), absolute.",
    )
    slice_bounds: dict[str, float] = Field(
        {},
        description="Slices with a bound of their own, e.g. {'language=zh': 0.0}; below 0 demands "
        "a reduction. A slice named here must have been measured.",
    )
    max_slice_perplexity_increase: float = Field(
        0.20, ge=0, description="Largest relative rise of neutral perplexity in any language."
    )
    max_identity_suppression: FRACTION = Field(
        0.5,
        description="Largest relative fall of the probability of neutral words for groups of "
        "people, where nothing toxic is about to be said.",
    )
    check_reload: bool = Field(
        True,
        description="Save the patched model in scratch space, load it back and compare it with "
        "what was measured; needs room for one more copy of the model.",
    )


class TuneSettings(Frozen):
    """The grid `eigenshift tune` searches."""

    scores: tuple[ComponentScore, ...] = Field(
        (
            ComponentScore.effect_size,
            ComponentScore.abs_delta,
            ComponentScore.auroc,
            ComponentScore.logit_gain,
        ),
        min_length=1,
        description="Rankings to try. The automatic choice is tried too, for every factor, unless "
        "components.n_components is set.",
    )
    n_components: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8, 16, 32), min_length=1, description="Numbers of components to try."
    )
    factors: tuple[FRACTION, ...] = Field(
        (0.0, 0.25, 0.5, 0.75), min_length=1, description="Factors to try."
    )
    max_perplexity_increase: float = Field(
        0.05, ge=0, description="Fluency budget of the search (design: corpus perplexity +5%)."
    )
    n_confirmed: int = Field(
        4,
        ge=1,
        description="How many of the best within the budget are confirmed by generation.",
    )


class CompareSettings(Frozen):
    """What `eigenshift compare` puts beside each other."""

    interventions: tuple[str, ...] = Field(
        (
            *("random_components", "label_permuted", "top_sigma", "det0", "damp", "aura"),
            *("linear_act", "mean_difference", "leace", "eigenshift_centered"),
        ),
        description="Interventions beside eigenshift itself, by their names in the registry.",
    )
    unit_dataset: str | None = Field(
        None,
        description="Labelled source that interventions inside the trunk read; empty: the first.",
    )
    paper_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Arm eigenshift_paper removes this share of all components, ranked by "
        "|difference| (the paper: 1,024 of 4,096).",
    )


class Overlap(str, Enum):
    """What a refresh does when another one of the same model is running."""

    queue = "queue"
    cancel = "cancel"
    allow = "allow"


class Runner(str, Enum):
    """Where the tasks of a run are carried out."""

    threads = "threads"
    processes = "processes"
    dask = "dask"
    ray = "ray"


class ExecutionSettings(Frozen):
    """How fast a run goes; never what it finds. Enters no fingerprint."""

    device: str = Field(
        "auto", description="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."
    )
    concurrency: int = Field(
        2, ge=1, description="Tasks in flight at once; workers, where the runner starts its own."
    )
    runner: Runner = Field(
        Runner.threads,
        description="threads: in this process, sharing one loaded model; processes: each with its "
        "own; dask, ray: on a cluster (pip extras of these names).",
    )
    cluster_address: Location | None = Field(
        None,
        description="A running Dask scheduler (tcp://host:8786) or Ray head (ray://host:10001); "
        "empty: workers are started on this machine for the run.",
    )
    gpus_per_task: float = Field(
        0.0,
        ge=0,
        description="Dask and Ray: GPUs that a task which runs a model claims; below 1, tasks "
        "share one.",
    )
    overlap: Overlap = Field(
        Overlap.queue,
        description="If another refresh of the model runs on the same Prefect server: wait for it, "
        "cancel this one, or run beside it (safe, but may do the same work twice).",
    )
    credentials_block: str | None = Field(
        None,
        description="Prefect block with the storage's credentials, type/name: a secret holding a "
        "JSON object of environment variables, or aws-credentials; empty: the environment's own.",
        pattern=r"^[a-z0-9-]+/.+$",
    )
    tokens_per_batch: int = Field(
        2_048,
        ge=1,
        description="Token budget of a forward pass; halved, and remembered for the model, where "
        "memory runs out. So are the next two.",
    )
    sequences_per_batch: int = Field(256, ge=1, description="Continuations generated at once.")
    texts_per_scoring_batch: int = Field(64, ge=1, description="Continuations scored at once.")
    show_text: bool = Field(
        False, description="Show the components' tokens, which may be offensive, in Prefect's UI."
    )
    duckdb_memory_limit: str = Field(
        "2GB", pattern=r"^\d+(\.\d+)?\s?(MB|GB|MiB|GiB)$", description="DuckDB's memory limit."
    )


class RefreshSettings(Frozen):
    """Everything one refresh needs: what to read, what to compute, when to release."""

    required_roles: ClassVar[tuple[Role, ...]] = tuple(Role)

    store: Location = Field(
        "./.eigenshift", title="Store", description="Root URL of the store (any fsspec scheme)."
    )
    model: ModelSettings = Field(title="Model", description="The model under study.")
    sources: tuple[SourceSettings, ...] = Field(
        title="Sources", min_length=1, description="Labelled texts, prompts and neutral texts."
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
    prompts: PromptSettings = Field(
        PromptSettings(), title="Prompts", description="Which prompts are continued."
    )
    generation: GenerationSettings = Field(
        GenerationSettings(), title="Generation", description="How continuations are sampled."
    )
    scorer: ScorerSettings = Field(
        ScorerSettings(), title="Scorer", description="The scorer whose verdicts decide."
    )
    further_scorers: tuple[ScorerSettings, ...] = Field(
        (),
        title="Further scorers",
        description="They judge the evaluation continuations too: metrics of their own, and a "
        "table of how far scorers agree. They decide nothing.",
    )
    components: ComponentSettings = Field(
        ComponentSettings(),
        title="Components",
        description="How components are scored and how many are damped.",
    )
    evaluation: EvaluationSettings = Field(
        EvaluationSettings(),
        title="Evaluation",
        description="What is measured, with which intervals.",
    )
    gate: GateSettings = Field(
        GateSettings(), title="Gate", description="When a patch may be released."
    )
    tune: TuneSettings = Field(
        TuneSettings(), title="Tuning", description="The grid that tune searches."
    )
    compare: CompareSettings = Field(
        CompareSettings(), title="Comparison", description="The arms that compare shows."
    )
    execution: ExecutionSettings = Field(
        ExecutionSettings(),
        title="Execution",
        description="How fast a run goes, never what it finds.",
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

    def sources_for(self, role: Role) -> tuple[SourceSettings, ...]:
        """The sources with this role, in the order given."""
        return tuple(source for source in self.sources if source.effective_role is role)


class DetectionSettings(RefreshSettings):
    """What `detect` needs: the same settings, of which it reads those up to the statistics."""

    required_roles: ClassVar[tuple[Role, ...]] = (Role.labelled,)


AnySettings = TypeVar("AnySettings", bound=RefreshSettings)


def list_presets() -> list[str]:
    """Names usable with `--preset`."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def find_preset(name: str) -> Path:
    """Where a shipped preset is.

    Raises:
        SettingsError: There is no such preset.
    """
    path = PRESET_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"preset {name!r}: expected one of {', '.join(list_presets())}, found no such preset. "
            "Choose one of these with --preset, or give a file with --config."
        )
    return path


def load_preset(name: str, overrides: Iterable[str] = ()) -> RefreshSettings:
    """Load a shipped preset.

    Raises:
        SettingsError: There is no such preset, or an override does not fit.
    """
    return load_settings(find_preset(name), overrides)


def load_settings(path: Path, overrides: Iterable[str] = ()) -> RefreshSettings:
    """Load a refresh's settings, as `load_settings_as`."""
    return load_settings_as(RefreshSettings, path, overrides)


def load_settings_as(
    kind: type[AnySettings], path: Path, overrides: Iterable[str] = ()
) -> AnySettings:
    """Load settings from a YAML file and apply `key.path=value` overrides.

    Relative source, model and classifier paths in the file are relative to the file itself; the
    store and paths given as overrides are relative to the working folder.

    Raises:
        SettingsError: The file is missing or no YAML mapping, or a value does not fit.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: expected a readable settings file, found {error.strerror or error}. "
            "Check the path given with --config."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected YAML in UTF-8, found: {error}.") from error
    if not isinstance(document, dict):
        raise SettingsError(
            f"{path}: expected a mapping of settings, found {type(document).__name__}."
        )
    document = _resolve_paths(document, path.resolve().parent)
    for override in overrides:
        _apply_override(document, override)
    return parse_settings_as(kind, document, str(path))


def parse_settings(document: Mapping[str, Any], place: str) -> RefreshSettings:
    """Validate a refresh's settings, as `parse_settings_as`."""
    return parse_settings_as(RefreshSettings, document, place)


def parse_settings_as(
    kind: type[AnySettings], document: Mapping[str, Any], place: str
) -> AnySettings:
    """Validate a mapping; `place` names its origin in the error.

    Raises:
        SettingsError: One line per field that does not fit: where, what was found, why.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in issue['loc']) or '(settings)'}: {issue['msg']}"
            f"{_describe_input(issue)}"
            for issue in error.errors(include_url=False)
        ]
        raise SettingsError(
            f"{place}: {len(lines)} setting(s) do not fit:\n" + "\n".join(lines) + "\n"
            "Correct them in the file or with --set key=value; docs/settings.md lists every field."
        ) from error


def _describe_input(issue: Any) -> str:
    if issue["type"] == SECRET_IN_URL:
        return ""
    value = issue.get("input")
    return f" (found {value!r})" if isinstance(value, str | int | float | bool) else ""


def _resolve_paths(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make relative paths in a settings file relative to the file's own folder."""

    def resolve(value: Any) -> Any:
        is_relative = isinstance(value, str) and value.startswith(("./", "../"))
        return str((folder / value).resolve()) if is_relative else value

    def resolve_keys(section: Any, keys: tuple[str, ...]) -> Any:
        if not isinstance(section, dict):
            return section
        return {key: resolve(value) if key in keys else value for key, value in section.items()}

    def resolve_scorer(section: Any) -> Any:
        found = resolve_keys(section, ("checkpoint", "config_folder", "model", "words"))
        if isinstance(found, dict) and isinstance(found.get("for_languages"), list):
            found["for_languages"] = [resolve_scorer(part) for part in found["for_languages"]]
        return found

    resolved = dict(document)
    if isinstance(document.get("sources"), list):
        resolved["sources"] = [
            resolve_keys(source, ("uri", "labels_uri")) for source in document["sources"]
        ]
    resolved["model"] = resolve_keys(document.get("model"), ("id",))
    resolved["scorer"] = resolve_scorer(document.get("scorer", {}))
    if isinstance(document.get("further_scorers"), list):
        resolved["further_scorers"] = [
            resolve_scorer(scorer) for scorer in document["further_scorers"]
        ]
    if isinstance(document.get("components"), dict):
        resolved["components"] = resolve_keys(document["components"], ("lexicon",))
    return resolved


def _apply_override(document: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place; values are YAML, list items are addressed by number."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise SettingsError(
            f"--set {override!r}: expected key=value, e.g. --set generation.n_samples=5."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {override!r}: the value is not valid YAML: {error}.") from error
    section: Any = document
    for key in keys[:-1]:
        section = _enter(section, key, override)
    if isinstance(section, list):
        section[_index(section, keys[-1], override)] = value
    else:
        section[keys[-1]] = value


def _enter(section: Any, key: str, override: str) -> Any:
    if isinstance(section, list):
        return section[_index(section, key, override)]
    if section.get(key) is None:
        section[key] = {}
    if not isinstance(section[key], dict | list):
        raise SettingsError(f"--set {override!r}: {key!r} is a single value and has no parts.")
    return section[key]


def _index(section: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(section):
        raise SettingsError(
            f"--set {override!r}: expected a list position 0 to {len(section) - 1}, found {key!r}."
        )
    return int(key)
