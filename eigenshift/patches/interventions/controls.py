"""Control arms: as many components, damped as much, chosen for no good reason.

What these do as well is not what toxicity has to do with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eigenshift.patches.interventions.interface import Evidence, Outcome, split_states
from eigenshift.patches.interventions.singular_components import choose_components, scale_chosen
from eigenshift.patches.requests import PatchRequest


def damp_random_components(evidence: Evidence, request: PatchRequest) -> Outcome:
    """As many components drawn at random, those that are damped last."""
    damped, factors = choose_components(evidence.components, request)
    drawn = draw_components(len(evidence.decomposition.sigma), damped, request.seed)
    return scale_chosen(evidence, drawn, factors)


def damp_top_sigma(evidence: Evidence, request: PatchRequest) -> Outcome:
    """As many components with the largest singular values."""
    _, factors = choose_components(evidence.components, request)
    return scale_chosen(evidence, range(len(factors)), factors)


def damp_label_permuted(evidence: Evidence, request: PatchRequest) -> Outcome:
    """As many components with the largest effect size when toxic and non-toxic are shuffled."""
    _, factors = choose_components(evidence.components, request)
    toxic, nontoxic = split_states(evidence.head_states)
    activations = np.concatenate([toxic, nontoxic]) @ evidence.decomposition.v
    order = np.random.default_rng(request.seed).permutation(len(activations))
    first, second = activations[order[: len(toxic)]], activations[order[len(toxic) :]]
    spread = np.sqrt(first.var(0, ddof=1) + second.var(0, ddof=1))
    gap = np.abs(first.mean(0) - second.mean(0))
    effect = np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0)
    ranking = [int(index) for index in np.argsort(-effect, kind="stable")]
    return scale_chosen(evidence, ranking[: len(factors)], factors)


def draw_components(n_components: int, damped: Sequence[int], seed: int) -> list[int]:
    """Draw as many components as are damped, from the others first."""
    generator = np.random.default_rng(seed)
    others = [index for index in range(n_components) if index not in set(damped)]
    order = [*generator.permutation(others), *generator.permutation(list(damped))]
    return [int(index) for index in order[: len(damped)]]
