"""Teacher-forced forward passes: sequences of tokens -> what enters the head at each position.

Right-padded batches by length within a token budget. The states do not depend on the batch beyond
rounding. The head itself is applied to one position only, since callers apply heads of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eigenshift.model.batching import plan_batches, run_in_batches
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import pad_tokens


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
        return _run_trunk(
            language_model, *pad_tokens(rows, language_model.tokenizer.pad_token_id, "right")
        )

    key = (language_model.digest, str(language_model.device), "forward pass")
    lengths = [len(sequence) for sequence in sequences]
    for batch, states in run_in_batches(key, lengths, tokens_per_batch, plan_batches, run):
        for row, place in enumerate(batch):
            yield place, states[row, : len(sequences[place])]


@contextmanager
def capture_head_states(
    language_model: LanguageModel, *, skip_logits: bool = False
) -> Iterator[list[Tensor]]:
    """Record what enters the output head in every forward pass run inside.

    Holds the model's lock. Each entry is one forward pass, shape (batch, position, hidden), dtype
    of the model, on the device of its head; when `generate` keeps a cache, position is 1 after the
    first pass. With `skip_logits` the head is applied to the last position only, which saves most
    of its work and a tensor of (batch, position, vocab).
    """
    states: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        states.append(args[0].detach().to(language_model.device))
        return (args[0][:, -1:],) if skip_logits else None

    with language_model.lock:
        handle = language_model.head_module.register_forward_pre_hook(record)
        try:
            yield states
        finally:
            handle.remove()


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
