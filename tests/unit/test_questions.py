"""Saved questions: each with a known answer on a small store."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.audit import AuditSession, open_audit
from eigenshift.errors import SettingsError
from eigenshift.questions import fill_question, list_questions
from tests.support.small_store import SmallStore, build_small_store

SITE = {"dataset": "comments", "read_at": "mlp_activation (max)"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def session(small: SmallStore) -> AuditSession:
    """A session on it."""
    return open_audit(small.url)


def ask(session: AuditSession, name: str, run_id: str) -> list[dict[str, Any]]:
    """Rows of a question's answer."""
    return session.query(fill_question(name, run_id)).to_pylist()


def test_every_question_can_be_asked_of_any_run(session: AuditSession, small: SmallStore) -> None:
    """Each says what it answers and gives rows or none, also about a run that is not there."""
    questions = list_questions()
    assert questions
    for name, answers in questions.items():
        assert answers.endswith((".", "?"))
        ask(session, name, small.run_id)
        assert ask(session, name, "no'such run") == []


def test_units_against_layers(session: AuditSession, small: SmallStore) -> None:
    """Units at 0.5, 0.6, 0.7 and 0.8 in each of two layers, whose probes have 0.8 and 0.9."""
    assert ask(session, "paper_rq1", small.run_id) == [
        SITE
        | {
            "layers": 2,
            "units": 8,
            "unit_auroc": 0.65,
            "layer_auroc": 0.85,
            "above_050": 0.75,
            "above_055": 0.75,
            "above_060": 0.5,
        }
    ]


def test_layers_side_by_side(session: AuditSession, small: SmallStore) -> None:
    """One row per layer: probe with its interval, clusters, best and mean unit."""
    assert ask(session, "paper_rq2", small.run_id) == [
        SITE
        | {
            "layer": layer,
            "probe": probe,
            "probe_interval": "[0.7, 0.95]",
            "clusters": 0.625,
            "best_unit": 0.75,
            "mean_unit": 0.55,
            "reason": None,
        }
        for layer, probe in ((0, 0.8), (1, 0.9))
    ]


def test_stability_of_units(session: AuditSession, small: SmallStore) -> None:
    """The bootstrap's rows, layer by layer."""
    rows = ask(session, "neuron_stability", small.run_id)
    assert [(row["layer"], row["metric"], row["value"], row["low"]) for row in rows] == [
        (0, "top_overlap", 0.9, 0.8),
        (1, "top_overlap", 0.9, 0.8),
    ]


def test_one_dataset_has_no_other_to_be_compared_with(
    session: AuditSession, small: SmallStore
) -> None:
    """No rows, and no error."""
    assert ask(session, "paper_datasets", small.run_id) == []


def test_an_unknown_question_is_refused_with_those_there_are() -> None:
    """The error names them."""
    with pytest.raises(SettingsError, match=r"paper_rq1.*found 'paper_rq9'"):
        fill_question("paper_rq9", "run")
