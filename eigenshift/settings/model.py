"""The model under study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eigenshift.settings.fields import Frozen, Location, Switch


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

    chat: Switch = Field(
        "auto",
        description="Put prompts and texts through the model's chat template: 'auto' where it has "
        "one, 'off' to study it on raw text.",
    )
    system_prompt: str | None = Field(
        None,
        description="System message of every conversation; empty leaves it to the chat template, "
        "which may have one of its own.",
    )

    @property
    def model_id(self) -> str:
        """Name in the runs and releases views."""
        return self.name or self.id
