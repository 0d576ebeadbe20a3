"""Every intervention by name: what builds it and what evidence it reads.

To add one, write a file with a function from evidence and request to an outcome (`interface.py`)
and add a line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from eigenshift.base.errors import SettingsError
from eigenshift.base.suggestions import suggest
from eigenshift.patches.requests import Need, PatchRequest

if TYPE_CHECKING:
    from eigenshift.patches.interventions.interface import Builder

COMPONENTS = frozenset({Need.decomposition, Need.components})
BUDGET = frozenset({Need.neutral_texts, Need.harmless_texts})
UNITS = BUDGET | {Need.units}
STATES = BUDGET | {Need.head_states}
TEXTS = BUDGET | {Need.labelled_texts}
FISHER = frozenset({Need.fisher})
SINGULAR = frozenset({"n_components", "factor", "score"})
NUMBER = frozenset({"n_components"})


@dataclass(frozen=True)
class Recipe:
    """How an intervention is built.

    Attributes:
        builder: Where the function from evidence to an outcome lies, "file.name"; imported when a
            patch is built, since all of them need torch.
        needs: The evidence it reads; nothing else enters the patch's fingerprint.
        takes: Which choices of a request it heeds beside budget, seed and divergence.
    """

    builder: str
    needs: frozenset[Need]
    takes: frozenset[str] = frozenset()

    def load_builder(self) -> Builder:
        """The function."""
        file, _, name = self.builder.partition(".")
        found: Builder = getattr(import_module(f"{__package__}.{file}"), name)
        return found


INTERVENTIONS: dict[str, Recipe] = {
    "eigenshift": Recipe("singular_components.damp_components", COMPONENTS, SINGULAR),
    "eigenshift_centered": Recipe(
        "singular_components.damp_deviations", COMPONENTS | {Need.head_states}, SINGULAR
    ),
    "eigenshift_fisher": Recipe("fisher_components.take_fisher_edit", FISHER),
    "eigenshift_fisher_deep": Recipe("fisher_components.take_fisher_edit", FISHER),
    "mean_difference": Recipe("linear_erasure.ablate_mean_difference", STATES),
    "leace": Recipe("linear_erasure.erase_concept", STATES),
    "aura": Recipe("unit_scaling.scale_by_auroc", UNITS),
    "damp": Recipe("unit_scaling.damp_units", UNITS, NUMBER),
    "det0": Recipe("unit_scaling.remove_units", UNITS, NUMBER),
    "linear_act": Recipe("linear_act.transport_units", TEXTS),
    "profs": Recipe("value_projection.project_values", TEXTS),
    "gradient_subspace": Recipe("gradient_subspace.project_gradients", STATES),
    "alpha_steer": Recipe("null_space_steering.steer_null_space", STATES),
    "chars": Recipe("cluster_steering.steer_clusters", TEXTS),
    "dsas": Recipe("gated_transport.transport_gated", TEXTS),
    "token_suppression": Recipe("token_suppression.lower_rows", STATES),
    "token_suppression_bias": Recipe("token_suppression.lower_bias", STATES),
    "random_components": Recipe("controls.damp_random_components", COMPONENTS, SINGULAR),
    "random_directions": Recipe("controls.change_random_directions", STATES),
    "top_sigma": Recipe("controls.damp_top_sigma", COMPONENTS, SINGULAR),
    "label_permuted": Recipe(
        "controls.damp_label_permuted", COMPONENTS | {Need.head_states}, SINGULAR
    ),
}


def find_recipe(name: str, place: str = "intervention") -> Recipe:
    """Look an intervention up.

    Args:
        name: Of the intervention.
        place: What named it, for the error.

    Raises:
        SettingsError: There is none of that name.
    """
    if name not in INTERVENTIONS:
        raise SettingsError(
            f"{place}: expected one of {', '.join(INTERVENTIONS)}, found {name!r}."
            f"{suggest(name, INTERVENTIONS)}"
        )
    return INTERVENTIONS[name]


def list_needs(request: PatchRequest) -> list[Need]:
    """The evidence that a request reads: its intervention's, and texts where it is scaled."""
    needs = find_recipe(request.intervention).needs
    return sorted(needs if request.divergence is None else needs | BUDGET)
