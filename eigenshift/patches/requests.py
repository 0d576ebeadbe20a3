"""Which patch to build: the request, and the kinds of evidence an intervention may ask for."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, ConfigDict

from eigenshift.settings import ComponentScore, Site

UNIT_SITES = (Site.mlp_up, Site.mlp_gate, Site.mlp_down)
"""Sites whose units are scaled, as far as the model has them."""


class Need(str, Enum):
    """Evidence an intervention may read."""

    decomposition = "decomposition"
    components = "components"
    head_states = "head_states"
    units = "units"
    labelled_texts = "labelled_texts"
    neutral_texts = "neutral_texts"
    harmless_texts = "harmless_texts"
    fisher = "fisher"


class PatchRequest(BaseModel):
    """Which patch to build; enters its fingerprint."""

    model_config = ConfigDict(frozen=True)
    intervention: str = "eigenshift"
    n_components: int | None = None
    """Components or units to change. None: those the component table selects, each by its factor
    there, or, for units, as many as the budget allows."""
    factor: float = 0.0
    """Of the `n_components` asked for."""
    score: ComponentScore | None = None
    """Ranking that `n_components` takes the top of; None: the component table's own."""
    seed: int = 0
    max_perplexity_increase: float = 0.05
    """Budget of what an intervention tunes by itself, on the calibration texts."""
    divergence: float | None = None
    """Scale the change until its KL to the base, on the same texts, is this; None: leave it."""
