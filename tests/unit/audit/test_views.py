"""Views that join tables: answers by arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.audit import open_audit
from tests.support.small_store import BENCHMARK_MARKS, SmallStore, build_small_store


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    """A store with a refresh."""
    return build_small_store(str(tmp_path / "store"))


def test_answers_are_told_by_arm_and_question(small: SmallStore) -> None:
    """Those of each run that asked; which answers a patch changed is one query."""
    record = small.add_benchmark()
    small.add_benchmark()
    with open_audit(small.url) as session:
        rows = session.query(
            f"SELECT * FROM benchmark_answers WHERE run_id = '{record.run_id}' "
            "ORDER BY arm, task DESC, question_index"
        ).to_pylist()
        changed = session.query(
            "SELECT task, question_index, b.value AS before, a.value AS after "
            "FROM benchmark_answers a JOIN benchmark_answers b "
            "USING (run_id, task, metric, filter, question_index, question_hash) "
            f"WHERE run_id = '{record.run_id}' AND b.arm = 'base' AND a.arm = 'eigenshift' "
            "AND a.value <> b.value ORDER BY task, question_index"
        ).to_pylist()
    found = {
        arm: {
            task: [row["value"] for row in rows if (row["arm"], row["task"]) == (arm, task)]
            for task in marks
        }
        for arm, marks in BENCHMARK_MARKS.items()
    }
    assert found == BENCHMARK_MARKS
    assert len(rows) == 16
    assert [tuple(row.values()) for row in changed] == [
        ("places", 1, 1.0, 0.0),
        ("places", 2, 0.0, 1.0),
        ("sums", 3, 1.0, 0.0),
    ]


def test_arms_that_share_answers_both_have_them(small: SmallStore) -> None:
    """Two interventions may make one patch."""
    record = small.add_benchmark()
    use = next(item for item in record.artifacts if item.label == "base")
    record.artifacts.append(use.model_copy(update={"label": "another"}))
    from eigenshift.ledger.runs import write_run

    write_run(small.artifacts.store, record)
    with open_audit(small.url) as session:
        rows = session.query(
            "SELECT arm, count(*) AS n FROM benchmark_answers GROUP BY arm ORDER BY arm"
        ).to_pylist()
    assert rows == [{"arm": arm, "n": 8} for arm in ("another", "base", "eigenshift")]
