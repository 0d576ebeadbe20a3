"""What a component stands for: the tokens it pushes and the contexts in which it is active.

A component moves the logits by sigma_i a_i u_i = a_i W v_i: the tokens at the two ends of W v_i are
what it raises and lowers where its activation is positive, that is on its toxic side (v is turned
so that toxic positions have the higher mean). Contexts are those of the head states, toxic and
matched, one per prompt. All of it may be offensive: the columns are hidden in SQL unless named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from eigenshift.base.arrays import FloatArray
from eigenshift.components.scores import read_states

N_TOKENS = 10
N_CONTEXTS = 5
HIGH, LOW = "high", "low"
DESCRIBED = ("prompt_id", "sample_index", "step", "language", "is_toxic", "context", "next_token")
"""Columns of a context that are those of its head state."""


@dataclass(frozen=True)
class TokenEnds:
    """The tokens a component raises and lowers most on its toxic side, strongest first."""

    up: list[str]
    down: list[str]


def find_token_ends(directions: FloatArray, weight: Tensor, tokenizer: Any) -> list[TokenEnds]:
    """Tokens at the ends of W v for each of some directions.

    Args:
        directions: Right singular vectors turned to their toxic side, shape (hidden, component).
        weight: The head's, shape (vocab, hidden).
        tokenizer: The language model's.
    """
    effects = weight.detach().float() @ weight.new_tensor(directions).float()
    return list_token_ends(effects, tokenizer)


def list_token_ends(effects: Tensor, tokenizer: Any) -> list[TokenEnds]:
    """Tokens that some directions raise and lower most.

    Args:
        effects: What each direction adds to the logits, shape (vocab, direction).
        tokenizer: The language model's.
    """
    n_tokens = min(N_TOKENS, len(effects))
    up = effects.topk(n_tokens, dim=0).indices.T.tolist()
    down = effects.topk(n_tokens, dim=0, largest=False).indices.T.tolist()
    return [
        TokenEnds(
            [tokenizer.decode([token]) for token in high], [tokenizer.decode([x]) for x in low]
        )
        for high, low in zip(up, down, strict=True)
    ]


def find_contexts(
    states: pa.Table, directions: FloatArray, components: Sequence[int]
) -> list[dict[str, Any]]:
    """Rows of `schemas.COMPONENT_CONTEXTS`: where each component is most and least active.

    Args:
        states: `schemas.HEAD_STATES` rows.
        directions: Right singular vectors turned to their toxic side, shape (hidden, component).
        components: Their indices, shape (component,).
    """
    activations = read_states(states) @ directions
    _, prompts = np.unique(states["prompt_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    descriptions = states.drop_columns(["state"]).to_pylist()
    rows = []
    for place, index in enumerate(components):
        for direction, sign in ((HIGH, -1.0), (LOW, 1.0)):
            order = np.argsort(sign * activations[:, place], kind="stable")
            for rank, position in enumerate(_take_one_per_prompt(order, prompts)):
                described = descriptions[position]
                rows.append(
                    {
                        "component_index": index,
                        "direction": direction,
                        "rank": rank,
                        "activation": float(activations[position, place]),
                        **{name: described[name] for name in DESCRIBED},
                    }
                )
    return rows


def _take_one_per_prompt(order: np.ndarray[Any, Any], prompts: np.ndarray[Any, Any]) -> list[int]:
    """The first positions of an order that belong to different prompts."""
    first = np.unique(prompts[order], return_index=True)[1]
    return [int(order[place]) for place in np.sort(first)[:N_CONTEXTS]]


def list_contexts(rows: Sequence[dict[str, Any]], direction: str) -> list[str]:
    """Texts of one component's contexts with the token that followed, strongest first."""
    return [
        f"{row['context']}[{row['next_token']}]" for row in rows if row["direction"] == direction
    ]
