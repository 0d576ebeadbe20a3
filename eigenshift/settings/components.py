"""How components of the head are scored and how many are damped."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import Field, model_validator

from eigenshift.settings.fields import FRACTION, Frozen, Location


class ComponentScore(str, Enum):
    """How components are ranked (how-it-works.md section 2)."""

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
        description="Of the n_components asked for: their singular values are multiplied by "
        "exactly this; 0 removes, 1 changes nothing.",
    )
    min_factor: FRACTION = Field(
        0.0,
        description="Of the automatic choice: no singular value is multiplied by less than this; 0 "
        "lets it remove components whole.",
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

    @property
    def least_factor(self) -> float:
        """The least that anything is multiplied by, whether chosen automatically or asked for."""
        return self.min_factor if self.n_components is None else self.factor

    @model_validator(mode="before")
    @classmethod
    def _read_former_name(cls, document: Any) -> Any:
        """Before there was `min_factor`, `factor` stood for both; files and records have it so."""
        if not isinstance(document, Mapping) or document.get("n_components") is not None:
            return document
        if "factor" not in document or "min_factor" in document:
            return document
        try:
            is_meant = 0.0 <= float(document["factor"]) <= 1.0
        except (TypeError, ValueError):
            is_meant = False
        if not is_meant:
            return document  # refused under the name that was given
        return {**document, "min_factor": document["factor"], "factor": 0.0}

    @model_validator(mode="after")
    def _check_combination(self) -> ComponentSettings:
        if self.n_components is None and self.factor:
            raise ValueError(
                "factor belongs to n_components; of the automatic choice set min_factor"
            )
        needs_list = self.positions is PositionSource.lexicon
        if needs_list != (self.lexicon is not None):
            raise ValueError("positions 'lexicon' and lexicon (a file) belong together")
        is_labelled = self.states_from is StateSource.labelled_text
        if self.positions is PositionSource.spans and not is_labelled:
            raise ValueError("positions 'spans' needs states_from 'labelled_text'")
        return self
