"""How the probability of toxic tokens depends on the head's own output, in closed form.

At a toxic position g = r (p restricted to the toxic tokens and renormalised - p), with r the weight
of the position times p / p of the base; by the state that enters the head it is g W. A head's scale
and soft cap enter by their derivative. Pure functions of logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eigenshift.components.calibration import MIN_PROBABILITY
from eigenshift.model.heads import HeadDescription


def finish_logits(head: HeadDescription, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and the slope of each logit by the head's own output.

    Args:
        head: For its scale and soft cap.
        raw: The head's own output, shape (position, vocab).
    """
    logits = head.finish_logits(raw)
    slopes = torch.full_like(logits[:1], head.logit_scale)
    if head.logit_softcap is not None:
        slopes = head.logit_scale * (1.0 - (logits / head.logit_softcap) ** 2)
    return torch.softmax(logits, 1), slopes


def differentiate_share(
    head: HeadDescription,
    raw: Tensor,
    is_toxic: Tensor,
    weights: Tensor,
    base_probabilities: Tensor | None = None,
) -> Tensor:
    """Derivative by the head's own output of the toxic tokens' weighted share of what it was.

    Args:
        head: For its scale and soft cap.
        raw: The head's own output at the positions, shape (position, vocab).
        is_toxic: 1 for toxic tokens, shape (vocab,).
        weights: Of the positions, shape (position,).
        base_probabilities: Of the toxic tokens together by the base, shape (position,); None: this
            is the base.

    Returns:
        Shape (position, vocab).
    """
    probabilities, slopes = finish_logits(head, raw)
    toxic = probabilities * is_toxic
    share = toxic.sum(1, keepdim=True)
    base = share if base_probabilities is None else base_probabilities[:, None]
    pull = (
        (toxic / share.clamp_min(1e-30) - probabilities) * share / base.clamp_min(MIN_PROBABILITY)
    )
    return pull * weights[:, None] * slopes
