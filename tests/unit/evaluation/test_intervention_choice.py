"""The automatic choice of an intervention: the lowest toxicity, by generation."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.evaluation.comparison import ArmEvidence
from eigenshift.evaluation.intervention_choice import choose_intervention
from eigenshift.evaluation.stages import InterventionKey
from eigenshift.store.workspace import Workspace
from tests.support.keys import make_key


def make_evidence(shares: list[float | None]) -> ArmEvidence:
    """Ten continuations of each prompt, of which a share is toxic; None: none was scored."""
    ids = [f"p{place}" for place in range(len(shares)) for _ in range(10)]
    toxic = [
        None if share is None else float(n < 10 * share) for share in shares for n in range(10)
    ]
    table = {"prompt_id": ids, "toxicity_probability": pa.array(toxic, pa.float64())}
    return ArmEvidence(pa.table({"prompt_id": ids}), pa.table(table))


def choose(shares: dict[str, list[float | None]], workspace: Workspace) -> list[dict[str, Any]]:
    """Choose and read back."""
    n_prompts = len(shares["base"])
    prompts = pa.table(
        {
            "prompt_id": [f"p{place}" for place in range(n_prompts)],
            "language": ["en"] * n_prompts,
            "toxicity": [0.1] * n_prompts,
        }
    )
    key = make_key(InterventionKey, "evaluation.n_bootstrap=200", arms=tuple(sorted(shares)))
    evidence = {arm: make_evidence(found) for arm, found in shares.items()}
    choose_intervention(prompts, evidence, key, workspace=workspace)
    return pq.read_table(workspace.path("intervention_choices.parquet")).to_pylist()


@pytest.mark.parametrize("best", ["deep", "head", "peer"])
def test_the_lowest_rate_is_chosen(best: str, workspace: Workspace) -> None:
    """Whatever its name; rates with intervals are told of all, of the base too."""
    shares: dict[str, list[float | None]] = {
        name: [0.4, 0.2, 0.6, 0.4] for name in ("deep", "head", "peer")
    }
    shares |= {"base": [0.8, 0.4, 0.6, 0.6], best: [0.2, 0.0, 0.4, 0.2]}
    rows = choose(shares, workspace)
    assert [row["arm"] for row in rows] == sorted(shares)
    assert [row["arm"] for row in rows if row["is_chosen"]] == [best]
    assert workspace.facts == {"chosen": best, "n_candidates": 3}
    for row in rows:
        known = [share for share in shares[row["arm"]] if share is not None]
        assert row["toxicity_rate"] == pytest.approx(sum(known) / 4)
        assert row["toxicity_rate_low"] <= row["toxicity_rate"] <= row["toxicity_rate_high"]


def test_of_equal_rates_the_first_by_name_is_chosen(workspace: Workspace) -> None:
    """So that a run that is repeated chooses alike."""
    equal: list[float | None] = [0.2, 0.4]
    rows = choose({"base": [0.6, 0.6], "peer": equal, "deep": equal[::-1]}, workspace)
    assert [row["arm"] for row in rows if row["is_chosen"]] == ["deep"]


def test_the_base_is_no_candidate(workspace: Workspace) -> None:
    """Where nothing helps, the least harmful is judged, and the gate holds it."""
    rows = choose({"base": [0.0, 0.0], "head": [0.2, 0.2], "deep": [0.4, 0.4]}, workspace)
    assert [row["arm"] for row in rows if row["is_chosen"]] == ["head"]


def test_a_candidate_without_a_score_is_not_chosen(workspace: Workspace) -> None:
    """An unknown rate is not the lowest."""
    rows = choose({"base": [0.2, 0.2], "deep": [None, None], "peer": [0.9, 0.9]}, workspace)
    assert [row["arm"] for row in rows if row["is_chosen"]] == ["peer"]
    assert rows[1]["toxicity_rate"] is None
