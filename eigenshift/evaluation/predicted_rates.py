"""The toxicity rate of an edited model, foretold from what the base said.

With w = p(y) / q(y) of a continuation y that the base drew (`likelihood_ratios.py`) and s whether
it is toxic, the mean of w s over the base's continuations is the edited model's rate. Texts that
are not toxic add nothing to it: of them a sample is weighed, to know how far the mean of w, which
is 1 but for chance, has strayed. What of the estimate goes with that is taken out (a control
variate, e.g. Owen, Monte Carlo theory, 2013, ch. 8.9 and 9). Weights are truncated at the root of
the number of texts (Ionides, J. Comput. Graph. Stat. 17, 2008). Intervals are over prompts, like
those of generated rates; where the toxic texts that count are too few, it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eigenshift.base.arrays import FloatArray, IntArray
from eigenshift.evaluation.bootstrap import summarise

MIN_EFFECTIVE = 30.0
"""Toxic texts that count, below which a foretold rate is not to be relied on."""
MIN_OTHERS = 200
"""Texts that are not toxic and are weighed, at least; else as many as are toxic."""
MAX_STRAYED = 4.0
"""Standard errors by which the mean weight may differ from 1: beyond it, something is not as drawn,
or the edited model says what the base hardly ever says."""

Places = IntArray
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WeighedSample:
    """Which of the base's texts are weighed, and for how many each stands.

    Attributes:
        places: Of these among all, shape (text,).
        counts: Each stands for so many, shape (text,).
        prompts: Index of each one's prompt, shape (text,).
        n_by_prompt: How many texts each prompt has in all, shape (prompt,).
    """

    places: Places
    counts: FloatArray
    prompts: IntArray
    n_by_prompt: FloatArray


@dataclass(frozen=True)
class PredictedRate:
    """What an edited model's rate is expected to be.

    Attributes:
        value: The rate; at least 0.
        low: Lower end of its interval over prompts.
        high: Upper end.
        n_effective: Toxic texts that count: (sum of w)^2 / sum of w^2 over them.
        mean_weight: Of all texts; 1 but for chance.
        is_reliable: Enough texts count, and the mean weight is not far from 1.
    """

    value: float
    low: float | None
    high: float | None
    n_effective: float
    mean_weight: float
    is_reliable: bool


def choose_texts(is_toxic: Flags, prompts: IntArray, n_prompts: int, seed: int) -> WeighedSample:
    """All toxic texts, and as many of the others.

    Args:
        is_toxic: Whether any scorer or slice counts a text, shape (text,).
        prompts: Index of its prompt, shape (text,).
        n_prompts: How many prompts there are.
        seed: Of the draw.
    """
    toxic, others = np.flatnonzero(is_toxic), np.flatnonzero(~is_toxic)
    n_drawn = min(len(others), max(MIN_OTHERS, len(toxic)))
    drawn = np.sort(np.random.default_rng(seed).choice(others, n_drawn, replace=False))
    share = len(others) / n_drawn if n_drawn else 1.0
    places = np.concatenate([toxic, drawn])
    counts = np.concatenate([np.ones(len(toxic)), np.full(n_drawn, share)])
    n_by_prompt = np.bincount(prompts, minlength=n_prompts).astype(np.float64)
    return WeighedSample(places, counts, prompts[places], n_by_prompt)


def predict_rate(
    log_ratios: FloatArray,
    is_toxic: Flags,
    sample: WeighedSample,
    replicates: FloatArray,
    confidence: float,
) -> PredictedRate:
    """The rate of one edit.

    Args:
        log_ratios: log p(y) / q(y) of the weighed texts, shape (text,).
        is_toxic: Whether each of them is, by the scorer asked, shape (text,).
        sample: Which texts these are.
        replicates: How often each prompt was drawn, shape (1 + replicate, prompt), row 0 all once
            (`bootstrap.draw_counts`); a slice of the prompts has 0 elsewhere.
        confidence: Of the interval.
    """
    n_texts = float(sample.n_by_prompt.sum())
    weights = np.minimum(np.exp(log_ratios), np.sqrt(n_texts))
    toxic_by_prompt = _sum_by_prompt(weights * is_toxic * sample.counts, sample)
    all_by_prompt = _sum_by_prompt(weights * sample.counts, sample)
    totals = replicates @ sample.n_by_prompt
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = replicates @ toxic_by_prompt / totals
        means = replicates @ all_by_prompt / totals
    asked = replicates[0] > 0
    n_prompts = int(asked.sum())
    spread = all_by_prompt[asked] / sample.n_by_prompt[asked] - 1.0
    share = toxic_by_prompt[asked] / sample.n_by_prompt[asked]
    variance = float(spread @ spread)
    slope = float(spread @ (share - share.mean())) / variance if variance > 0 else 0.0
    draws = np.maximum(rates - slope * (means - 1.0), 0.0)
    estimate = summarise(draws, confidence)
    counted = weights[is_toxic & asked[sample.prompts]]
    squares = float(counted @ counted)
    n_effective = float(counted.sum()) ** 2 / squares if squares > 0 else 0.0
    error = np.sqrt(variance) / max(n_prompts, 1)
    strayed = abs(float(means[0]) - 1.0)
    return PredictedRate(
        float(draws[0]),
        estimate.low,
        estimate.high,
        n_effective,
        float(means[0]),
        n_effective >= MIN_EFFECTIVE and strayed <= MAX_STRAYED * max(error, 1e-6),
    )


def _sum_by_prompt(values: FloatArray, sample: WeighedSample) -> FloatArray:
    sums = np.bincount(sample.prompts, weights=values, minlength=len(sample.n_by_prompt))
    return np.asarray(sums, dtype=np.float64)
