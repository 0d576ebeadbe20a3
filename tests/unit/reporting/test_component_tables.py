"""People are shown the components of the patch that was judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.ledger.runs import RunRecord, start_run
from eigenshift.reporting.component_tables import ComponentTable, tabulate_components
from tests.support.small_store import (
    N_COMPONENTS,
    SELECTED,
    SmallStore,
    build_small_store,
    make_settings,
)

HIDDEN = "their tokens are hidden (execution.show_text)"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store whose runs these tests add."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def fisher(small: SmallStore) -> RunRecord:
    """A refresh that judged a Fisher patch, and found the components of another budget too."""
    return small.add_treated_run("eigenshift_fisher", "fisher_components")


def show(
    small: SmallStore, record: RunRecord, max_rows: int = 64, *, show_text: bool = False
) -> ComponentTable:
    """The table of a run that has one."""
    found = tabulate_components(small.artifacts, record, max_rows, show_text=show_text)
    assert found is not None
    return found


def test_a_fisher_patch_shows_its_own_components(small: SmallStore, fisher: RunRecord) -> None:
    """Those of its budget, what brings most first, with benefit and cost; no singular one."""
    found = show(small, fisher)
    assert found.rows[0] == {
        "component": "0",
        "module": "head",
        "step": "0.5",
        "benefit": "0.25",
        "benefit_low": "0.1",
        "benefit_high": "0.4",
        "cost": "0.005",
        "inclusion_frequency": "1",
    }
    assert [row["component"] for row in found.rows] == ["0", "1", "2"]
    title = "Fisher components of the patch eigenshift_fisher, those that bring most first"
    assert found.description == f"{title}; {HIDDEN}"


def test_a_singular_patch_shows_what_it_damps(small: SmallStore) -> None:
    """The selected components alone, with the factor of each."""
    found = show(small, small.record)
    assert [row["component"] for row in found.rows] == [str(index) for index in SELECTED]
    assert {row["factor"] for row in found.rows} == {"0"}
    assert found.rows[0]["q_value"] == "-"
    assert found.description == f"Components damped, most toxic first; {HIDDEN}"


def test_damped_deviations_are_damped_components(small: SmallStore) -> None:
    """`eigenshift_centered` takes the same choice."""
    found = show(small, small.add_treated_run("eigenshift_centered"))
    assert [row["component"] for row in found.rows] == [str(index) for index in SELECTED]


def test_a_patch_of_anything_else_shows_the_most_toxic_components(small: SmallStore) -> None:
    """All in order of rank, without a factor that nothing is multiplied by, and says so."""
    for intervention, basis in (("leace", "head_states"), ("top_sigma", "components")):
        found = show(small, small.add_treated_run(intervention, basis))
        assert len(found.rows) == N_COMPONENTS
        assert [row["component"] for row in found.rows[:3]] == ["1", "4", "0"]
        assert "factor" not in found.rows[0]
        assert f"the patch {intervention} is not made of these" in found.description


def test_a_run_held_before_its_patch_calls_nothing_damped(small: SmallStore) -> None:
    """The most toxic components, and that no patch was built."""
    record = small.add_run("refresh", "held")
    record.artifacts = [use for use in record.artifacts if use.kind != "patch"]
    found = show(small, record)
    assert len(found.rows) == N_COMPONENTS
    assert "no patch was built" in found.description


def test_a_run_without_components_shows_none(small: SmallStore, tmp_path: Path) -> None:
    """It ended before."""
    record = start_run("refresh", make_settings(small.url))
    assert tabulate_components(small.artifacts, record, 64, show_text=False) is None


def test_tokens_are_shown_only_where_asked_for(small: SmallStore, fisher: RunRecord) -> None:
    """Of either kind; contexts, which are texts of samples, never."""
    for record, up, down in (
        (fisher, " kettle", " bridge"),
        (small.record, " kettle  <b>", " train"),
    ):
        hidden, shown = show(small, record), show(small, record, show_text=True)
        assert not {"tokens_up", "tokens_down"} & set(hidden.rows[0])
        assert (shown.rows[0]["tokens_up"], shown.rows[0]["tokens_down"]) == (up, down)
        assert HIDDEN not in shown.description
        assert "harbour" not in f"{hidden} {shown}"


def test_a_cut_table_says_of_how_many(small: SmallStore, fisher: RunRecord) -> None:
    """The first ones, and the number of all."""
    found = show(small, fisher, 2)
    assert [row["component"] for row in found.rows] == ["0", "1"]
    assert "the first 2 of 3" in found.description
