"""Teacher-forced forward passes: sequences of tokens -> what enters the head at each position.

Right-padded batches by length within a token budget. The states do not depend on the batch beyond
rounding. The head itself is applied to one position only, since callers apply heads of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from eigenshift.batching import plan_batches, run_in_batches
from eigenshift.models import LanguageModel, capture_head_states, require_known_tokens


def encode_text(language_model: LanguageModel, text: str, max_tokens: int) -> list[int]:
    """Tokens of a text whose likelihood is measured: BOS first where the tokenizer has one.

    Truncated to `max_tokens` and to the positions the model has.

    Raises:
        ModelError: A token is unknown to the model.
    """
    tokenizer = language_model.tokenizer
    n_positions = getattr(
        language_model.model.config.get_text_config(), "max_position_embeddings", None
    )
    max_tokens = max_tokens if n_positions is None else min(max_tokens, n_positions)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found: list[int] = start + tokenizer(text, add_special_tokens=False)["input_ids"]
    found = found[:max_tokens]
    require_known_tokens(language_model, found)
    return found


@torch.inference_mode()
def iterate_head_states(
    language_model: LanguageModel, sequences: Sequence[Sequence[int]], tokens_per_batch: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield (place in `sequences`, states of shape (position, hidden)), shortest first.

    Args:
        language_model: The model; only its trunk matters.
        sequences: Token ids, at least one each.
        tokens_per_batch: Budget of tokens, padding included, in a forward pass; smaller ones are
            tried where memory runs out.
    """

    def run(batch: list[int]) -> Tensor:
        rows = [sequences[place] for place in batch]
        return _run_trunk(language_model, *pad_right(rows, language_model.tokenizer.pad_token_id))

    key = (language_model.digest, str(language_model.device), "forward pass")
    lengths = [len(sequence) for sequence in sequences]
    for batch, states in run_in_batches(key, lengths, tokens_per_batch, plan_batches, run):
        for row, place in enumerate(batch):
            yield place, states[row, : len(sequences[place])]


def pad_right(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (batch, position)."""
    width = max(len(sequence) for sequence in sequences)
    token_ids = torch.full((len(sequences), width), pad_token_id)
    mask = torch.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        token_ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return token_ids, mask


def _run_trunk(language_model: LanguageModel, token_ids: Tensor, mask: Tensor) -> Tensor:
    """States entering the head, shape (batch, position, hidden).

    Taken at the head, not from the trunk's output, so that whatever a model does in between is
    included.
    """
    device = language_model.device
    with capture_head_states(language_model, skip_logits=True) as captured:
        language_model.model(
            input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False
        )
    return captured[0]
