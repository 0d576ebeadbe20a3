"""What text costs a model, the slow way: one text at a time, the model's own logits, float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Tokens = Sequence[int]


@torch.inference_mode()
def find_log_probabilities(model: Any, sequence: Tokens) -> Tensor:
    """Of every token after each of a text's, by the model as it runs now, (position, vocab)."""
    logits = model(input_ids=torch.tensor([list(sequence)]), use_cache=False).logits
    return torch.log_softmax(logits[0].double(), -1)


def measure_loss(model: Any, sequences: Sequence[Tokens]) -> float:
    """Mean negative log-likelihood of the tokens that follow, nats a token."""
    losses = [
        -find_log_probabilities(model, sequence)[:-1].gather(1, torch.tensor(sequence[1:])[:, None])
        for sequence in map(list, sequences)
    ]
    return float(torch.cat(losses).mean())
