"""How models read and write text, and what is said of one that does not generate any."""

from __future__ import annotations

from enum import Enum


class ModelKind(str, Enum):
    """How a model reads and writes text."""

    causal = "causal language model"
    encoder = "encoder"
    encoder_decoder = "encoder-decoder"


def explain_no_head(model_id: str, kind: ModelKind) -> str:
    """Why a model that does not generate text is refused where one is needed."""
    return (
        f"{model_id}: expected a causal language model, found an {kind.value}, which has no head "
        "that generates text token by token. Choose a model made to generate text, or study what "
        "this one detects (eigenshift detect)."
    )
