"""Where a run's numbers came from, as SQL has it and as a picture."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.ledger.runs import RunRecord
from eigenshift.reporting.lineage import describe_lineage, picture_lineage
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


def make_artifact(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    """As the view `artifacts` has it."""
    known = {"rows": 10, "bytes": 2000, "was_cached": False}
    return {"kind": kind, "fingerprint": name, **known, **fields}


def refer(*names: str) -> list[dict[str, str]]:
    """Inputs, "kind name" each."""
    return [dict(zip(("kind", "fingerprint"), name.split(), strict=True)) for name in names]


def test_picture_is_of_the_run(small: SmallStore) -> None:
    """Every kind of artifact has a box, the gate stands at the end, and sources are named."""
    with open_audit(small.url) as session:
        found = describe_lineage(session, small.record)
        kinds = session.query(
            f"SELECT DISTINCT kind FROM artifacts WHERE run_id = '{small.run_id}'"
        ).to_pylist()
    picture = found["picture"]
    named = {row[0].partition(",")[0] for row in picture.rows}
    assert {row["kind"].replace("_", " ") for row in kinds} <= named
    assert {"source files", "model files", "classifier files"} <= named
    assert "down to the gate" in picture.summary
    assert ">gate</text>" in picture.wide
    assert [row[0] for row in found["sources"]] == ["comments", "neutral", "prompts"]
    assert found["classifiers"] == ["c" * 64]
    for text in ("kettle", "platform"):
        assert text not in picture.wide + picture.narrow


def test_what_rests_on_a_patch_stands_apart(small: SmallStore) -> None:
    """Continuations make a patch, which makes continuations: two boxes, not a circle."""
    artifacts = [
        make_artifact("c1", "continuations"),
        make_artifact("p", "patch", was_cached=True),
        make_artifact("c2", "continuations", rows=5),
        make_artifact("c3", "continuations", rows=7),
    ]
    inputs = {
        "c1": refer("weights w"),
        "p": refer("continuations c1"),
        "c2": refer("patch p", "weights w"),
        "c3": refer("patch p", "weights w"),
    }
    record = small.record.model_copy(update={"checks": []})
    assert picture_lineage(artifacts, inputs, record).rows == (
        ("model files", "-", 1, "0", "0 bytes", 0),
        ("continuations, base", "model files", 1, "10", "2.0 kB", 0),
        ("patch", "continuations, base", 1, "10", "2.0 kB", 1),
        ("continuations, patched", "model files, patch", 2, "12", "4.0 kB", 0),
    )


def test_circles_of_kinds_are_told_apart_by_depth(small: SmallStore) -> None:
    """One sample of a kind may be made from another of that kind."""
    artifacts = [make_artifact("a", "records"), make_artifact("b", "records")]
    inputs = {"a": refer("source s"), "b": refer("records a")}
    record = small.record.model_copy(update={"checks": []})
    names = [row[0] for row in picture_lineage(artifacts, inputs, record).rows]
    assert names == ["source files", "records, 1", "records, 2"]


def test_run_that_made_nothing_has_no_picture(small: SmallStore) -> None:
    """And no sources."""
    record = RunRecord(
        run_id="none", command="refresh", started_at="2026-01-01", model_id="m", settings={}
    )
    with open_audit(small.url) as session:
        found = describe_lineage(session, record)
    assert found["picture"] is None
    assert found["sources"] == []
    assert found["n_artifacts"] == 0
