"""What any pass over tokens needs: a model's positions, the token a text begins with, padding.

Knows models and tokenizers; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

Side = Literal["right", "left"]


def read_positions(model: Any) -> int | None:
    """The positions a model's configuration names, None if it names none."""
    n_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return n_positions if isinstance(n_positions, int) else None


_positions: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()
"""Of each model looked at, as long as it lives: a large one has tens of thousands of modules."""


def count_positions(model: Any) -> int | None:
    """The tokens a model reads at most, None if its positions are not limited.

    RoBERTa and its kin count positions from behind the padding's, so they have fewer of them than
    their configuration says.
    """
    if model not in _positions:
        _positions[model] = _count_positions(model)
    return _positions[model]


def _count_positions(model: Any) -> int | None:
    n_positions = read_positions(model)
    if n_positions is None:
        return None
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            n_positions -= module.padding_idx + 1
    return n_positions


def limit_tokens(model: Any, max_tokens: int) -> int:
    """So many tokens, or the number of positions the model has if that is smaller."""
    n_positions = count_positions(model)
    return max_tokens if n_positions is None else min(max_tokens, n_positions)


def find_start(tokenizer: Any) -> int | None:
    """The token a text begins with: BOS, else EOS, None if the tokenizer has neither."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None


def find_ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a text or a turn, ascending: chat models have several.

    The tokenizer names one; the others stand in `generation_config.json` and `config.json`, as a
    number or a list, and transformers' own `generate` stops at all of the former's.
    """
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for named in (tokenizer, generation, model.config.get_text_config()):
        ends = getattr(named, "eos_token_id", None)
        found.update([] if ends is None else [ends] if isinstance(ends, int) else ends)
    return tuple(sorted(found))


def pad_tokens(
    sequences: Sequence[Sequence[int]], pad_token_id: int, side: Side
) -> tuple[Tensor, Tensor]:
    """Pad sequences to the longest of them.

    Returns:
        Token ids and attention mask (1 at real tokens), both int64 of shape (batch, position).
    """
    width = max(len(sequence) for sequence in sequences)
    token_ids = torch.full((len(sequences), width), pad_token_id)
    mask = torch.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        place = slice(len(sequence)) if side == "right" else slice(width - len(sequence), width)
        token_ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return token_ids, mask


def mark_counted(mask: Tensor, counted: Sequence[slice], side: Side) -> Tensor:
    """Of a padded batch, 1 at the tokens that count.

    Args:
        mask: Attention mask as `pad_tokens` gives it, shape (batch, position).
        counted: Of each sequence, which of its tokens count.
        side: Which side is padded.
    """
    marked = torch.zeros_like(mask)
    for row, (span, n_real) in enumerate(zip(counted, mask.sum(1).tolist(), strict=True)):
        first = 0 if side == "right" else mask.shape[1] - n_real
        marked[row, first + span.start : first + span.stop] = 1
    return marked
