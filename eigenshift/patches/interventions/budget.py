"""How strong an intervention may be: the strongest whose cost on calibration texts is in budget.

Every intervention has a number (a factor, units, a strength) that a fair comparison must tune. It
is tuned on the same texts and to the same budget as ours: the calibration half of the neutral texts
and harmless in-domain texts, whichever suffers more (`patches/cost.py`), never on evaluation
prompts or texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from eigenshift.components.budget_texts import gather_budget_texts
from eigenshift.components.harmless_texts import BUDGET
from eigenshift.patches.cost import CostMeter
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.interventions.interface import Evidence, Outcome
from eigenshift.patches.requests import PatchRequest
from eigenshift.patches.strength import find_strongest

MAX_TOKENS = 128
PARAMETER = "calibration_perplexity_increase"


def tune_strength(
    evidence: Evidence,
    request: PatchRequest,
    make_edit: Callable[[float], ModelEdit],
    *,
    first: float = 0.5,
    most: float = 1.0,
) -> Outcome:
    """The strongest edit in budget; the weakest that was tried where none is.

    Args:
        evidence: The model, neutral and harmless texts.
        request: The budget, relative to the base.
        make_edit: Strength -> edit, above 0.
        first: Strength that is tried first.
        most: The strongest there is.
    """
    meter = make_meter(evidence)
    rough = meter.make_rough()
    rises: dict[float, float] = {}

    def measure(strength: float) -> float:
        rises[strength] = meter.measure(make_edit(strength)).largest_rise
        return rises[strength]

    def measure_roughly(strength: float) -> float:
        return rough.measure(make_edit(strength)).largest_rise

    budget = math.log1p(request.max_perplexity_increase)
    strength, _ = find_strongest(measure, budget, first=first, most=most, roughly=measure_roughly)
    strength = strength or min(rises)
    increase = math.expm1(rises[strength])
    return Outcome(make_edit(strength), parameters={"strength": strength, PARAMETER: increase})


def make_meter(evidence: Evidence) -> CostMeter:
    """The meter of the evidence's calibration texts."""
    language_model = evidence.language_model
    texts = gather_budget_texts(
        language_model,
        evidence.neutral_texts,
        evidence.harmless_texts,
        MAX_TOKENS,
        use=BUDGET,
    )
    return CostMeter(language_model, texts)


def match_divergence(evidence: Evidence, outcome: Outcome, divergence: float) -> Outcome:
    """The same change, made weaker or stronger until its KL to the base is what is asked for.

    What cannot be scaled beyond itself (a factor below 0 would flip a component) stays below.

    Args:
        evidence: The model, neutral and harmless texts.
        outcome: Of an intervention.
        divergence: Mean KL(base || patched) on neutral calibration text, nats a token.
    """
    meter = make_meter(evidence)
    rough = meter.make_rough()

    def measure_with(asked: CostMeter) -> Callable[[float], float]:
        def measure(strength: float) -> float:
            return asked.measure(outcome.edit.scale(strength), with_divergence=True).divergence

        return measure

    strength, found = find_strongest(
        measure_with(meter),
        divergence,
        first=1.0,
        most=_limit_scale(outcome),
        roughly=measure_with(rough),
    )
    parameters = {**outcome.parameters, "scale": strength, "calibration_kl_to_base": found}
    return Outcome(outcome.edit.scale(strength), parameters=parameters)


def _limit_scale(outcome: Outcome) -> float:
    """How far components can be damped further: to nothing."""
    factors = outcome.factors or (() if outcome.factor is None else (outcome.factor,))
    return 1.0 / max(1.0 - min(factors), 1e-6) if factors else math.inf
