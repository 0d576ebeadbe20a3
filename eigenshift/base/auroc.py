"""How well scores tell two classes apart: the area under the ROC curve, with its interval."""

from __future__ import annotations

import numpy as np
from scipy import stats

from eigenshift.base.arrays import BoolArray, FloatArray


def estimate_auroc(
    scores: FloatArray, is_toxic: BoolArray, confidence: float
) -> tuple[float, float, float]:
    """Return the AUROC of scores and the ends of its DeLong interval, cut to 0 .. 1.

    DeLong, DeLong and Clarke-Pearson (1988), by mid-ranks as in Sun and Xu (2014): each sample's
    placement is the share of the other class it is ranked above, ties counting one half.

    Args:
        scores: Finite scores, shape (sample,); higher means more toxic.
        is_toxic: Labels, shape (sample,); at least two of each class.
        confidence: Level, e.g. 0.95.
    """
    n_toxic, n_nontoxic = np.count_nonzero(is_toxic), np.count_nonzero(~is_toxic)
    ranks = stats.rankdata(scores)
    toxic_placements = (ranks[is_toxic] - stats.rankdata(scores[is_toxic])) / n_nontoxic
    nontoxic_placements = 1 - (ranks[~is_toxic] - stats.rankdata(scores[~is_toxic])) / n_toxic
    auroc = float(toxic_placements.mean())
    variance = toxic_placements.var(ddof=1) / n_toxic + nontoxic_placements.var(ddof=1) / n_nontoxic
    half_width = float(stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance))
    return auroc, max(0.0, auroc - half_width), min(1.0, auroc + half_width)
