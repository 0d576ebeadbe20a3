"""A run that is too small for what it is asked is told so before it starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eigenshift.evaluation.evidence import Evidence, find_thin_evidence

ENOUGH = Evidence(
    n_prompts=300, n_continuations=10, n_budget_texts=250, budget=0.05, confidence=0.95
)


def test_enough_evidence_says_nothing() -> None:
    """Also the demo's: few texts are enough for a small budget."""
    assert find_thin_evidence(ENOUGH) == []
    demo = Evidence(150, 25, 300, 0.03, 0.95)
    assert find_thin_evidence(demo) == []
    assert find_thin_evidence(replace(ENOUGH, n_budget_texts=16)) == []


def test_a_large_budget_on_few_texts_is_told() -> None:
    """Thirty sentences, half of which measure the budget, for +30%: 31 points of doubt."""
    (caveat,) = find_thin_evidence(replace(ENOUGH, n_budget_texts=15, budget=0.3))
    assert "31 points higher" in caveat
    assert "1152 neutral texts" in caveat  # (2 * 2 * 0.3 / 0.05)^2 = 576 of them for the budget
    assert "max_perplexity_increase to 0.048" in caveat
    assert find_thin_evidence(replace(ENOUGH, n_budget_texts=576, budget=0.3)) == []


@pytest.mark.parametrize(
    ("n_prompts", "said"), [(40, "from 59% on"), (5, "not even when all of it is gone")]
)
def test_too_few_prompts_to_show_half_are_told(n_prompts: int, said: str) -> None:
    """With how many would do; 53 of them is `test_power.py`'s by hand."""
    (caveat,) = find_thin_evidence(replace(ENOUGH, n_prompts=n_prompts))
    assert said in caveat
    assert "About 53 prompts" in caveat
    assert find_thin_evidence(replace(ENOUGH, n_prompts=53)) == []
