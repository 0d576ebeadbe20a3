"""Which ridge the metric needs: found on prompts that the step was not made from.

States of a real model are far from round: on SmolLM2 one direction holds 44% of their second moment
and nine tenths of all directions lie below the mean. To a metric with a small ridge these are
cheap, so that a step fits the contexts that it was made from and misses others. How much is needed
differs from model to model (docs/decisions/0087-how-firm-the-metric-is.md), so steps are made from
half of the prompts, each as strong as the budget allows, and what they leave is measured on the
others.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.whitening import METRIC_RIDGE
from eigenshift.patches.strength import find_strongest

logger = logging.getLogger(__name__)

RIDGES = (METRIC_RIDGE, 1.0, 10.0, 100.0)
SLACK = 1.25
"""The smallest ridge that leaves at most so many times what the best leaves: differences below that
are noise where prompts are few, and what a ridge does beyond the known tokens nobody measured."""
LEAST_PROMPTS = 20
"""With toxic positions in fewer prompts halves say nothing, and the first ridge is taken."""


def choose_ridge(study: HeadStudy, max_perplexity_increase: float, seed: int) -> float:
    """The smallest ridge that leaves about the least of the toxic tokens on other prompts.

    Args:
        study: At the unpatched model; left as it was, but for its ridge, which is the chosen one.
        max_perplexity_increase: Budget of each step, relative to the base.
        seed: Of the halves.
    """
    prompts = study.prompts[: len(study.weights)]
    if len(torch.unique(prompts)) < LEAST_PROMPTS:
        return study.ridge
    weights = study.weights
    is_seen = _draw_half(prompts, seed).to(weights)
    left: dict[float, float] = {}
    for ridge in RIDGES:
        study.ridge, study.weights = ridge, weights * is_seen
        direction = study.find_direction()
        strength, _ = find_strongest(
            lambda value, direction=direction: study.measure(direction(value)),  # type: ignore[misc]
            math.log1p(max_perplexity_increase),
        )
        study.weights = weights * (1.0 - is_seen)
        left[ridge] = study.measure_share(direction(strength))
    study.weights = weights
    least = min(left.values())
    enough = (ridge for ridge in RIDGES if left[ridge] <= SLACK * least)
    study.ridge = next(enough, METRIC_RIDGE)  # none, where shares are no numbers
    logger.info(
        "fisher metric: ridge=%g left_on_other_prompts=%s",
        study.ridge,
        ",".join(f"{share:.3f}" for share in left.values()),
    )
    return study.ridge


def _draw_half(prompts: Tensor, seed: int) -> Tensor:
    """Whether each position's prompt is in one half, drawn at random, shape (position,)."""
    names, places = torch.unique(prompts, return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return (order < len(names) // 2)[places]
