"""Agreement of scorers: by hand, against scikit-learn, and null where undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from sklearn.metrics import cohen_kappa_score

from eigenshift.base import schemas
from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.agreement import ScoredArms, compare_scorers, measure_agreement
from eigenshift.store.workspace import Workspace

NAN = float("nan")


def make_scores(values: list[float | None]) -> pa.Table:
    """One scored or unscored continuation per value."""
    rows = [
        {"prompt_id": f"p{place}", "sample_index": 0, "toxicity_probability": value}
        for place, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.SCORES)


def make_continuations(languages: list[str]) -> pa.Table:
    """One continuation per language given."""
    rows = [
        {"prompt_id": f"p{place}", "sample_index": 0, "language": language}
        for place, language in enumerate(languages)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS)


def test_agreement_by_hand() -> None:
    """Toxic by both 1, by one 1, by neither 2 of 4: kappa (3/4 - 1/2) / (1/2)."""
    found = measure_agreement(
        np.array([0.9, 0.6, 0.2, 0.1, NAN]), np.array([0.8, 0.3, 0.4, 0.1, 0.9]), 0.5, 0.5
    )
    assert found["n"] == 4
    assert found["n_unscored"] == 1
    assert found["cohens_kappa"] == pytest.approx(0.5)
    assert found["share_both_toxic"] == 0.25
    assert found["disagreement_share"] == 0.25
    assert (found["toxic_share_a"], found["toxic_share_b"]) == (0.5, 0.25)
    assert found["reason"] is None


def test_kappa_and_rank_correlation_are_the_references() -> None:
    """scikit-learn's kappa on each scorer's own threshold, SciPy's Spearman with ties."""
    generator = np.random.default_rng(0)
    first = generator.random(200).round(1)
    second = (first + generator.normal(0, 0.3, 200)).clip(0, 1).round(1)
    found = measure_agreement(first, second, 0.5, 0.7)
    assert found["cohens_kappa"] == pytest.approx(cohen_kappa_score(first > 0.5, second > 0.7))
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(first, second).statistic)


@pytest.mark.parametrize(
    ("first", "second", "is_null"),
    [
        ([0.1, 0.2], [0.1, 0.3], {"cohens_kappa"}),
        ([0.9, 0.9], [0.1, 0.9], {"spearman"}),
        ([0.1, 0.1], [0.2, 0.3], {"cohens_kappa", "spearman"}),
        ([0.1, NAN], [0.2, 0.3], {"cohens_kappa", "spearman", "disagreement_share"}),
    ],
)
def test_what_is_undefined_is_null_with_a_reason(
    first: list[float], second: list[float], is_null: set[str]
) -> None:
    """Never 0 or 1."""
    found = measure_agreement(np.array(first), np.array(second), 0.5, 0.5)
    for name in ("cohens_kappa", "spearman", "disagreement_share"):
        assert (found.get(name) is None) == (name in is_null)
    assert found["reason"]


def test_every_pair_arm_and_language_has_a_row(workspace: Workspace) -> None:
    """Three scorers, two arms, two languages and all."""
    continuations = make_continuations(["en", "en", "zh", "zh"])
    scores = {"base": make_scores([0.1, 0.9, 0.2, 0.8]), "other": make_scores([0.1] * 4)}
    verdicts = [ScoredArms(name, 0.5, scores) for name in ("one", "two", "three")]
    compare_scorers(dict.fromkeys(scores, continuations), verdicts, workspace)
    rows: list[dict[str, Any]] = pq.read_table(
        workspace.path("scorer_agreement.parquet")
    ).to_pylist()
    assert len(rows) == 3 * 2 * 3
    assert {row["language"] for row in rows} == {"all", "en", "zh"}
    assert {row["n"] for row in rows if row["language"] == "zh"} == {2}
    base = [row for row in rows if row["arm"] == "base"]
    assert {row["cohens_kappa"] for row in base} == {1.0}


def test_scores_of_other_continuations_are_refused(workspace: Workspace) -> None:
    """Rows are compared by their keys, not by luck."""
    verdicts = [
        ScoredArms("one", 0.5, {"base": make_scores([0.1, 0.2])}),
        ScoredArms("two", 0.5, {"base": make_scores([0.1])}),
    ]
    with pytest.raises(EvaluationError, match="scorer two"):
        compare_scorers({"base": make_continuations(["en", "en"])}, verdicts, workspace)
