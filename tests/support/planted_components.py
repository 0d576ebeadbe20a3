"""Planted signals: a head with known toxic directions, and states that move along them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from eigenshift.components.decomposition import Decomposition, decompose_head
from eigenshift.components.scores import Activations, ComponentScores, score_components
from eigenshift.components.table import rank_components
from eigenshift.settings import ComponentScore

HIDDEN, VOCAB, N_PLANTED = 96, 400, 10


@dataclasses.dataclass(frozen=True)
class Planted:
    """A head with known toxic directions and states that move along them."""

    weight: torch.Tensor
    decomposition: Decomposition
    components: set[int]
    toxic: np.ndarray[Any, Any]
    nontoxic: np.ndarray[Any, Any]
    direction: np.ndarray[Any, Any]


def plant(seed: int) -> Planted:
    """Shift anisotropic states along random components, by amounts of random sign.

    The components' own scale varies over a factor of ten, so the largest raw difference is not
    the clearest one.
    """
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(VOCAB, HIDDEN)))[0]
    right = np.linalg.qr(generator.normal(size=(HIDDEN, HIDDEN)))[0]
    sigma = np.geomspace(30, 1, HIDDEN)
    weight = torch.from_numpy(left * sigma @ right.T).float()
    decomposition = decompose_head(weight)
    planted = generator.choice(HIDDEN, N_PLANTED, replace=False)
    scale = np.geomspace(3, 0.3, HIDDEN)[generator.permutation(HIDDEN)]
    shift = np.zeros(HIDDEN)
    shift[planted] = generator.choice([-1, 1], N_PLANTED) * scale[planted] * 0.8

    def draw(n_states: int) -> np.ndarray[Any, Any]:
        return generator.normal(size=(n_states, HIDDEN)) * scale

    v = decomposition.v
    return Planted(
        weight,
        decomposition,
        {int(index) for index in planted},
        (draw(300) + shift) @ v.T,
        draw(1200) @ v.T,
        generator.normal(size=HIDDEN),
    )


def flip_signs(decomposition: Decomposition, seed: int) -> Decomposition:
    """Another equally valid decomposition of the same head."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], len(decomposition.sigma))
    return dataclasses.replace(decomposition, v=decomposition.v * signs)


def project(planted: Planted, v: np.ndarray[Any, Any]) -> Activations:
    """Activations of a planted case; five positions of each kind come from the same prompt."""
    prompts = np.arange(len(planted.nontoxic)) // 5
    return Activations(
        planted.toxic @ v, planted.nontoxic @ v, prompts[: len(planted.toxic)], prompts
    )


def score(planted: Planted, decomposition: Decomposition | None = None) -> ComponentScores:
    """Score a planted case."""
    v = (decomposition or planted.decomposition).v
    return score_components(project(planted, v), v, planted.direction)


def recall(planted: Planted, scores: ComponentScores, by: ComponentScore) -> float:
    """Share of planted components among the first ten of a ranking."""
    return len(planted.components & set(rank_components(scores, by)[:N_PLANTED])) / N_PLANTED
