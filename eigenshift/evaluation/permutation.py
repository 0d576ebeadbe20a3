"""A paired test without assumptions on the distribution: sign flips over prompts."""

from __future__ import annotations

import numpy as np

from eigenshift.base.arrays import FloatArray

N_FLIPS = 9_999
FLIPS_PER_BLOCK = 500


def compute_p_value(differences: FloatArray, seed: int) -> float | None:
    """Two-sided p-value of a mean difference of zero.

    If an arm did nothing, each prompt's difference would be as likely with the other sign; the
    p-value is the share of random sign patterns with a mean as far from 0, the one found among
    them, so it is never 0.

    Args:
        differences: Arm minus base, one per prompt, shape (prompt,); NaN ones are left out.
        seed: Of the sign patterns.

    Returns:
        The p-value, or None without a prompt.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return None
    generator = np.random.default_rng(seed)
    found = abs(known.sum()) * (1.0 - 1e-12)  # so that rounding does not break ties
    n_as_far = 0
    for first in range(0, N_FLIPS, FLIPS_PER_BLOCK):
        n_flips = min(FLIPS_PER_BLOCK, N_FLIPS - first)
        signs = generator.integers(0, 2, (n_flips, len(known)), dtype=np.int8) * 2.0 - 1.0
        n_as_far += int((np.abs(signs @ known) >= found).sum())
    return (1 + n_as_far) / (1 + N_FLIPS)
