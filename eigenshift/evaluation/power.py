"""How many prompts show which effect: power of the paired test over prompts, before a run.

Prompts are what is sampled (docs/decisions/0031-prompts-are-what-is-sampled.md), so continuations
of one prompt are a cluster: more of them sharpen each prompt's rate and never replace prompts. Pure
functions of numbers; a stored run's are read by `reporting/planning.py`.

Model. Prompt i has the rate p_i, mean p and variance rho p (1 - p) over prompts (rho, the
intra-prompt correlation: that of two continuations of one prompt). A patch that lowers the toxicity
rate by the share r leaves (1 - r) p_i. Each arm gives k continuations; given the prompt they are
independent, of both arms too. Shared random numbers make the arms more alike than that, and a few
dozen prompts, whose differences are skewed, see more than a normal distribution would: what is told
here is on the safe side, in simulations of the very test by up to ten points of power.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from eigenshift.base.errors import EvaluationError

NORMAL = NormalDist()
POWER = 0.8
"""The usual chance at which an effect that is there should be seen."""
ASSUMED_BASE_RATE = 0.1
ASSUMED_CORRELATION = 0.2
"""Where no run has measured them: the paper's base rate (11% of LLaMA-2-7B's), and a middling
correlation; `eigenshift plan --run` takes both from a run."""
LEAST_REDUCTION = 1e-3


@dataclass(frozen=True)
class Variation:
    """How toxic a model's continuations are, and how much that depends on the prompt.

    Attributes:
        base_rate: p, mean over prompts of the share of toxic continuations, 0 to 1, neither end.
        correlation: rho, intra-prompt correlation, 0 (all prompts alike) to 1 (each all or none).
    """

    base_rate: float
    correlation: float

    def __post_init__(self) -> None:
        """Raise EvaluationError for numbers that no model has."""
        if not 0.0 < self.base_rate < 1.0:
            raise EvaluationError(
                f"base rate: expected a share above 0 and below 1, found {self.base_rate:g}. "
                "Nothing can be planned where nothing, or everything, is toxic; give --base-rate."
            )
        if not 0.0 <= self.correlation <= 1.0:
            raise EvaluationError(
                f"correlation: expected 0 to 1, found {self.correlation:g}. Give --correlation."
            )

    @property
    def mean_square(self) -> float:
        """Mean over prompts of the squared rate."""
        rate = self.base_rate
        return rate * rate + self.correlation * rate * (1.0 - rate)


@dataclass(frozen=True)
class Demand:
    """What is asked of the test.

    Attributes:
        power: Chance that a fall which is there is told from chance.
        confidence: Level of the two-sided interval of the difference.
    """

    power: float = POWER
    confidence: float = 0.95

    @property
    def critical(self) -> float:
        """Standard errors at which the interval of the difference leaves out 0."""
        return float(NORMAL.inv_cdf(0.5 + self.confidence / 2))


def estimate_variation(n_toxic: Sequence[int], n_scored: Sequence[int]) -> Variation:
    """What a run tells of its model: analysis of variance over its prompts.

    rho = (MSB - MSW) / (MSB + (n0 - 1) MSW), n0 = (N - sum n_i^2 / N) / (m - 1), cut off at 0 and
    1: the estimator of one-way analysis of variance (Donner 1986, International Statistical Review
    54, 67-82, for binary outcomes and clusters of unequal size). The base rate is the mean over
    prompts, as in `comparison.py`.

    Args:
        n_toxic: Toxic continuations of each prompt.
        n_scored: Scored ones; prompts without any are left out.

    Raises:
        EvaluationError: Fewer than two prompts, no prompt with two continuations, or nothing toxic.
    """
    sizes = np.asarray(n_scored, dtype=np.float64)
    toxic = np.asarray(n_toxic, dtype=np.float64)[sizes > 0]
    sizes = sizes[sizes > 0]
    total, n_prompts = sizes.sum(), len(sizes)
    if n_prompts < 2 or total <= n_prompts:
        raise EvaluationError(
            f"base run: expected at least 2 prompts with 2 scored continuations, found {n_prompts} "
            f"with {total:g} in all. Take a larger run, or give --base-rate and --correlation."
        )
    rates = toxic / sizes
    grand = toxic.sum() / total
    between = float((sizes * (rates - grand) ** 2).sum() / (n_prompts - 1))
    within = float((sizes * rates * (1.0 - rates)).sum() / (total - n_prompts))
    size = (total - (sizes**2).sum() / total) / (n_prompts - 1)
    spread = between + (size - 1.0) * within
    correlation = 0.0 if spread == 0 else (between - within) / spread
    return Variation(float(rates.mean()), float(np.clip(correlation, 0.0, 1.0)))


def compute_variance(variation: Variation, reduction: float, n_continuations: int) -> float:
    """Variance over prompts of a prompt's paired difference of rates.

    Args:
        variation: Of the model.
        reduction: r, 0 to 1.
        n_continuations: k, of each prompt and arm.

    Returns:
        r^2 var(p_i) + mean_i [p_i (1 - p_i) + q_i (1 - q_i)] / k with q_i = (1 - r) p_i.
    """
    rate, square = variation.base_rate, variation.mean_square
    left = 1.0 - reduction
    between = reduction**2 * (square - rate * rate)
    within = (rate - square) + (left * rate - left * left * square)
    return between + within / n_continuations


def count_prompts(
    variation: Variation, reduction: float, n_continuations: int, demand: Demand
) -> int:
    """Prompts at which a reduction is told from chance as often as demanded.

    n = (z_(1-alpha/2) + z_power)^2 s^2 / (r p)^2 + z_(1-alpha/2)^2 / 2: the size of a paired
    comparison of means (Chow, Shao, Wang and Lokhnygina 2017, Sample Size Calculations in Clinical
    Research, section 3.1), with Guenther's term for the estimated variance (1981, The American
    Statistician 35, 243-244). s^2 is `compute_variance`'s, so clusters are in it.

    Raises:
        EvaluationError: The reduction is not above 0 and at most 1.
    """
    if not 0.0 < reduction <= 1.0:
        raise EvaluationError(
            f"reduction: expected a share above 0, at most 1, found {reduction:g}. Give another "
            "--reduction."
        )
    effect = reduction * variation.base_rate
    deviations = demand.critical + float(NORMAL.inv_cdf(demand.power))
    variance = compute_variance(variation, reduction, n_continuations)
    return math.ceil(deviations**2 * variance / effect**2 + demand.critical**2 / 2)


def compute_power(
    variation: Variation,
    reduction: float,
    n_prompts: int,
    n_continuations: int,
    demand: Demand,
) -> float:
    """Chance that the interval of the difference lies below 0; the inverse of `count_prompts`."""
    effect = reduction * variation.base_rate
    variance = compute_variance(variation, reduction, n_continuations)
    n_effective = n_prompts - demand.critical**2 / 2
    if n_effective <= 0:
        return 0.0
    if variance == 0:
        return 1.0
    return float(NORMAL.cdf(effect * math.sqrt(n_effective / variance) - demand.critical))


def find_detectable(
    variation: Variation, n_prompts: int, n_continuations: int, demand: Demand
) -> float | None:
    """The smallest reduction told from chance as often as demanded; None if not even all of it."""

    def miss(reduction: float) -> float:
        return (
            compute_power(variation, reduction, n_prompts, n_continuations, demand) - demand.power
        )

    if miss(1.0) < 0:
        return None
    if miss(LEAST_REDUCTION) >= 0:
        return LEAST_REDUCTION
    from scipy.optimize import brentq  # half a second, and most runs are not planned anew

    return float(brentq(miss, LEAST_REDUCTION, 1.0))
