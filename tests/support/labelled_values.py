"""Made-up activations of one layer, with labels."""

from __future__ import annotations

import numpy as np


def make_ids(n_samples: int) -> list[str]:
    """Ids as a run has them, already in ascending order."""
    return [f"demo-{index:05d}" for index in range(n_samples)]


def make_layer(n_samples: int, n_units: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values (unit, sample) in float16 with a weak signal and uneven scales, and labels."""
    generator = np.random.default_rng(seed)
    is_toxic = generator.random(n_samples) < 0.3
    values = generator.normal(size=(n_units, n_samples))
    values += 0.6 * generator.normal(size=(n_units, 1)) * is_toxic / np.sqrt(n_units / 10)
    values *= np.exp(generator.normal(size=(n_units, 1)))
    values += 5 * generator.normal(size=(n_units, 1))
    return values.astype(np.float16), is_toxic
