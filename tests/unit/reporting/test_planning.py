"""A plan is made from a run's own prompts, or says that its numbers are assumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.evaluation.power import Demand, count_prompts, estimate_variation
from eigenshift.reporting.planning import assume_basis, make_plan, measure_basis
from eigenshift.settings import load_preset
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


def test_a_runs_base_arm_gives_rate_and_correlation(small: SmallStore) -> None:
    """Counted from its scores by hand, prompt by prompt; of no other arm."""
    basis = measure_basis(small.url, None)
    counts: dict[str, list[int]] = {}
    scores = small.artifacts.open(small.references["scores-evaluation-base"]).read_table(
        "scores.parquet"
    )
    for row in scores.to_pylist():
        value = row["toxicity_probability"]
        if value is not None:
            counts.setdefault(row["prompt_id"], []).append(int(value > 0.5))
    expected = estimate_variation(
        [sum(found) for found in counts.values()], [len(found) for found in counts.values()]
    )
    assert basis.base_rate == pytest.approx(expected.base_rate)
    assert basis.correlation == pytest.approx(expected.correlation)
    assert small.run_id in basis.origin


def test_the_table_counts_prompts_for_each_pair(tmp_path: Path) -> None:
    """Rows are reductions, columns continuations; the settings' own sizes are judged beside it."""
    basis, demand = assume_basis(0.2, None), Demand()
    settings = load_preset("demo", [f"store={tmp_path}"])
    plan = make_plan(basis, (0.2, 0.5), (5, 25), demand, settings)
    assert plan.prompts[1] == {
        "reduction": 0.5,
        "n_prompts": [count_prompts(basis.variation, 0.5, k, demand) for k in (5, 25)],
    }
    assert plan.rows[1][0] == "50%"
    assert plan.rows[1][1] == f"{plan.prompts[1]['n_prompts'][0]} prompts"
    assert "base rate given" in plan.notes[0]
    assert "150 prompts with 25 continuations each: from" in plan.notes[2]
    assert plan.as_contract()["detectable"]["reduction"] < 0.3


def test_without_a_run_the_numbers_are_called_assumed() -> None:
    """Nobody should take them for measured."""
    assert "assumed" in assume_basis(None, None).origin
    assert make_plan(assume_basis(None, None), (0.5,), (10,), Demand()).detectable is None
