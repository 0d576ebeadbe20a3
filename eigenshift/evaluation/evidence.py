"""What limits a run before it starts: too little evidence for what it is asked to do.

Two rules, both of sizes alone, so that they can be said before hours of work. They warn and stop
nothing. Reads and writes nothing; what the finished numbers say against themselves is
`caveats.py`'s.

- *Cost.* A budget is the mean of many texts' own rises of the loss, which differ: their standard
  deviation is about `SPREAD` times their mean. So on other text the cost lies within two standard
  errors, 2 SPREAD budget / sqrt(texts), of what was measured: more than `MAX_COST_DOUBT` is worth a
  warning. The texts that are enough grow with the square of the budget.
- *Benefit.* So many prompts and continuations must be able to show a fall of toxicity by
  `MAX_DETECTABLE` (`power.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from eigenshift.evaluation.power import (
    ASSUMED_BASE_RATE,
    ASSUMED_CORRELATION,
    Demand,
    Variation,
    count_prompts,
    find_detectable,
)

MAX_COST_DOUBT = 0.05
"""Relative rise of perplexity by which the cost elsewhere may exceed the budget without a word."""
SPREAD = 2.0
"""Median of 109 arms that cost 1% to 20% in comparisons on the demo and on made-up text, by the
rows of `fluency` (half of them between 1.5 and 2.8; on harmless in-domain text more)."""
MAX_DETECTABLE = 0.5
"""A run that cannot show that half of the toxicity is gone shows little."""


@dataclass(frozen=True)
class Evidence:
    """Sizes of a run.

    Attributes:
        n_prompts: Prompts that the patch is judged on.
        n_continuations: Of each.
        n_budget_texts: Neutral texts that the budget is measured on, about half of all.
        budget: Relative rise of perplexity that the patch may cost.
        confidence: Level of the intervals.
    """

    n_prompts: int
    n_continuations: int
    n_budget_texts: int
    budget: float
    confidence: float


def find_thin_evidence(evidence: Evidence) -> list[str]:
    """Sentences that say what is too small for what, and what would do."""
    return [*_weigh_cost(evidence), *_weigh_benefit(evidence)]


def _weigh_cost(evidence: Evidence) -> Iterator[str]:
    n_texts, budget = evidence.n_budget_texts, evidence.budget
    doubt = 2 * SPREAD * budget / math.sqrt(max(1, n_texts))
    if doubt <= MAX_COST_DOUBT:
        return
    n_needed = math.ceil((2 * SPREAD * budget / MAX_COST_DOUBT) ** 2)
    affordable = MAX_COST_DOUBT * math.sqrt(max(1, n_texts)) / (2 * SPREAD)
    yield (
        f"A budget of +{budget:.0%} perplexity on about {n_texts} neutral texts is a large budget "
        f"on little evidence: on other text the cost may be {100 * doubt:.0f} points higher (two "
        f"standard errors). Give about {2 * n_needed} neutral texts, half of which it is measured "
        f"on, or set components.max_perplexity_increase to {affordable:.3f} or less."
    )


def _weigh_benefit(evidence: Evidence) -> Iterator[str]:
    assumed = Variation(ASSUMED_BASE_RATE, ASSUMED_CORRELATION)
    demand = Demand(confidence=evidence.confidence)
    found = find_detectable(assumed, evidence.n_prompts, evidence.n_continuations, demand)
    if found is not None and found <= MAX_DETECTABLE:
        return
    n_needed = count_prompts(assumed, MAX_DETECTABLE, evidence.n_continuations, demand)
    least = "not even when all of it is gone" if found is None else f"from {found:.0%} on"
    yield (
        f"{evidence.n_prompts} prompts with {evidence.n_continuations} continuations each tell a "
        f"fall of toxicity from chance {least} ({demand.power:.0%} of such runs, if "
        f"{assumed.base_rate:.0%} of the base's continuations are toxic). About {n_needed} prompts "
        f"tell half of it: set prompts.n_evaluation; `eigenshift plan` says which effect takes how "
        "many."
    )
