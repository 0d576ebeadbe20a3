"""Which intervention is judged and released, and how the Fisher components are found."""

from __future__ import annotations

from pydantic import Field

from eigenshift.settings.fields import Frozen

AUTOMATIC = "auto"


class PatchSettings(Frozen):
    """The treatment: what a refresh builds, judges and releases."""

    intervention: str = Field(
        "eigenshift_fisher",
        title="Intervention",
        description="Judged and released: any intervention of the registry that folds into the "
        "weights; auto: the one that lowers the toxicity of the selection prompts most.",
    )
    candidates: tuple[str, ...] = Field(
        (
            *("eigenshift_fisher", "eigenshift_fisher_deep", "eigenshift"),
            "mean_difference",
        ),
        min_length=1,
        description="What 'auto' chooses from, all of the same budget; what does not fold is left "
        "out. Interventions that read units or labelled texts cannot be named.",
    )
    n_terms: int = Field(
        32,
        ge=1,
        description="eigenshift_fisher: rank of the change of the head, and of each round.",
    )
    n_deep_terms: int = Field(
        32, ge=1, description="eigenshift_fisher_deep: rank-one changes a round, over all layers."
    )
    n_rounds: int = Field(
        3,
        ge=1,
        le=10,
        description="Steps after each of which the Fisher components are found anew.",
    )
    max_metric_tokens: int = Field(
        24_000,
        ge=100,
        description="Tokens of harmless text that shape the Fisher metric, of all kinds together.",
    )


class HarmlessSettings(Frozen):
    """Harmless text of the domain the toxic text is of: what no budget may leave out."""

    n_continuations: int = Field(
        600,
        ge=0,
        description="Non-toxic continuations of the base that shape the Fisher metric (two thirds) "
        "and the budget of every intervention (one third).",
    )
    n_labelled: int = Field(
        300, ge=0, description="Labelled non-toxic texts, drawn and used likewise."
    )
    n_evaluated: int = Field(
        300,
        ge=0,
        description="Other ones of each kind, for every arm's in-domain perplexity.",
    )
    max_tokens: int = Field(128, ge=2, description="Longer texts are truncated.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")
