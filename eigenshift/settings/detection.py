"""Which activations are kept, and what is computed from them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import Field

from eigenshift.settings.fields import Frozen


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
