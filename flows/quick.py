"""The refresh with the half-dozen settings that people change; all others are those of a file.

Started from the Prefect UI (deployment `refresh-quick`), where `QuickRefresh` is the form. What it
does is `refresh.py`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from eigenshift.reporting.outcomes import RefreshOutcome
from eigenshift.settings import RefreshSettings, find_preset, list_presets, load_settings
from eigenshift.settings.fields import Frozen, Location
from flows.refresh import carry_out
from flows.run_labels import compose_run_name

SUFFIXES = (".yaml", ".yml")
FIELDS = {
    "store": "store",
    "model": "model.id",
    "n_prompts": "prompts.n_evaluation",
    "n_samples": "generation.n_samples",
    "max_perplexity_increase": "components.max_perplexity_increase",
    "intervention": "patch.intervention",
}
"""Field of the form -> setting."""
Intervention = Literal[
    "eigenshift_fisher", "eigenshift_fisher_deep", "eigenshift", "mean_difference", "auto"
]


class QuickRefresh(Frozen):
    """What to refresh. A field left empty is as in the settings it begins with."""

    settings: str = Field(
        "demo",
        title="Settings",
        description=f"A preset ({', '.join(list_presets())}), or a YAML file that the worker can "
        "read. Whatever is left empty below is as it says.",
        min_length=1,
    )
    store: Location | None = Field(
        None, title="Store", description="Root URL of the store, where results go."
    )
    model: Location | None = Field(
        None, title="Model", description="Hugging Face id, or a folder that the worker can read."
    )
    n_prompts: int | None = Field(
        None,
        ge=1,
        title="Prompts",
        description="On which the patch is judged; more make the intervals narrower.",
    )
    n_samples: int | None = Field(
        None, ge=1, title="Continuations per prompt", description="Of every arm that is compared."
    )
    max_perplexity_increase: float | None = Field(
        None,
        gt=0,
        title="Budget",
        description="The most that perplexity may rise, as a part: 0.01 is one percent.",
    )
    intervention: Intervention | None = Field(
        None,
        title="Intervention",
        description="What is judged and released; auto: the best of the others on other prompts.",
    )

    def load(self) -> RefreshSettings:
        """The settings of a whole refresh.

        Raises:
            SettingsError: There are no such settings, or a value does not fit them.
        """
        given = {name: getattr(self, name) for name in FIELDS}
        changes = [
            f"{FIELDS[name]}={json.dumps(value)}"
            for name, value in given.items()
            if value is not None
        ]
        if self.model is not None:  # name and revision are the other model's
            changes += ["model.name=null", "model.revision=null"]
        is_file = self.settings.endswith(SUFFIXES)
        return load_settings(
            Path(self.settings) if is_file else find_preset(self.settings), changes
        )


def name_run() -> str:
    """As that of a whole refresh."""
    changes: QuickRefresh = flow_run.parameters["changes"]
    return compose_run_name(changes.load())


@flow(name="refresh-quick", flow_run_name=name_run, result_serializer="json")
def refresh_quick(changes: QuickRefresh) -> RefreshOutcome | State[RefreshOutcome]:
    """Find, patch, prove and release, with a short form.

    Args:
        changes: What differs from a preset or a settings file.
    """
    return carry_out(changes.load())
