"""The toxicity rate of an edited model, foretold from what the base said.

With w = p(y) / q(y) of a continuation y that the base drew (`likelihood_ratios.py`) and s whether
it is toxic, the mean of w s over the base's continuations, divided by the mean of w, is the edited
model's rate (self-normalised importance sampling, e.g. Owen, Monte Carlo theory, 2013, ch. 9). The
mean of w estimates how much of what the edited model says the base might have said at all: what
moves beyond the base's nucleus is missing from both, and is taken to be as toxic as the rest. Texts
that are not toxic add to the second mean only, so a sample of them is weighed. Weights are
truncated at the root of the number of texts (Ionides, J. Comput. Graph. Stat. 17, 2008). Intervals
are over prompts, like those of generated rates; where too little counts, it says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eigenshift.base.arrays import FloatArray, IntArray
from eigenshift.evaluation.bootstrap import summarise

MIN_EFFECTIVE = 30.0
"""Toxic texts that count, below which a foretold rate is not to be relied on."""
MAX_TOXIC = 300
"""Toxic texts that are weighed, at most: what more of them add, prompts take away again."""
MIN_OTHERS = 150
"""Texts that are not toxic and are weighed, at least; else half as many as are toxic."""
MIN_COVERED, MAX_COVERED = 0.5, 1.5
"""Bounds of the mean weight: below, the edited model says mostly what the base never says; above,
a few weights make up most of it."""

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

    places: IntArray
    counts: FloatArray
    prompts: IntArray
    n_by_prompt: FloatArray


@dataclass(frozen=True)
class PredictedRate:
    """What an edited model's rate is expected to be.

    Attributes:
        value: The rate; None where nothing is covered.
        low: Lower end of its interval over prompts.
        high: Upper end.
        n_effective: Toxic texts that count: (sum of w)^2 / sum of w^2 over them.
        covered: The mean weight: the share of what the edited model says that the base might say.
        is_reliable: Enough texts count, and enough is covered.
    """

    value: float | None
    low: float | None
    high: float | None
    n_effective: float
    covered: float
    is_reliable: bool


def choose_texts(is_toxic: Flags, prompts: IntArray, n_prompts: int, seed: int) -> WeighedSample:
    """Toxic texts, and half as many of the others.

    Args:
        is_toxic: Whether any scorer or slice counts a text, shape (text,).
        prompts: Index of its prompt, shape (text,).
        n_prompts: How many prompts there are.
        seed: Of the draw.
    """
    generator = np.random.default_rng(seed)
    toxic, others = np.flatnonzero(is_toxic), np.flatnonzero(~is_toxic)
    n_toxic = min(len(toxic), MAX_TOXIC)
    n_others = min(len(others), max(MIN_OTHERS, n_toxic // 2))
    drawn = [
        np.sort(generator.choice(group, n_drawn, replace=False))
        for group, n_drawn in ((toxic, n_toxic), (others, n_others))
    ]
    counts = [
        np.full(len(found), len(group) / max(len(found), 1))
        for found, group in zip(drawn, (toxic, others), strict=True)
    ]
    places = np.concatenate(drawn)
    n_by_prompt = np.bincount(prompts, minlength=n_prompts).astype(np.float64)
    return WeighedSample(places, np.concatenate(counts), prompts[places], n_by_prompt)


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
    weights = _find_weights(log_ratios, sample)
    share = float(
        replicates[0]
        @ _sum_by_prompt(weights * sample.counts, sample)
        / (replicates[0] @ sample.n_by_prompt)
    )
    estimate = summarise(draw_rates(log_ratios, is_toxic, sample, replicates), confidence)
    counted = weights[is_toxic & (replicates[0] > 0)[sample.prompts]]
    squares = float(counted @ counted)
    n_effective = float(counted.sum()) ** 2 / squares if squares > 0 else 0.0
    is_reliable = n_effective >= MIN_EFFECTIVE and MIN_COVERED <= share <= MAX_COVERED
    return PredictedRate(
        estimate.value, estimate.low, estimate.high, n_effective, share, is_reliable
    )


def draw_rates(
    log_ratios: FloatArray, is_toxic: Flags, sample: WeighedSample, replicates: FloatArray
) -> FloatArray:
    """The rate by each replicate of the prompts, shape (1 + replicate,); NaN: nothing is covered.

    Args: as for `predict_rate`.
    """
    weights = _find_weights(log_ratios, sample)
    toxic_by_prompt = _sum_by_prompt(weights * is_toxic * sample.counts, sample)
    all_by_prompt = _sum_by_prompt(weights * sample.counts, sample)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((replicates @ toxic_by_prompt) / (replicates @ all_by_prompt))


def _find_weights(log_ratios: FloatArray, sample: WeighedSample) -> FloatArray:
    return np.asarray(np.minimum(np.exp(log_ratios), np.sqrt(float(sample.n_by_prompt.sum()))))


def _sum_by_prompt(values: FloatArray, sample: WeighedSample) -> FloatArray:
    sums = np.bincount(sample.prompts, weights=values, minlength=len(sample.n_by_prompt))
    return np.asarray(sums, dtype=np.float64)
