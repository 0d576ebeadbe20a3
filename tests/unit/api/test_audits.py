"""Questions to a store, answered as tables that are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.api.audits import open_audit
from eigenshift.audit import HIDDEN_TEXT
from eigenshift.base.errors import QuestionError, SettingsError
from tests.support.small_store import build_small_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one artifact of every kind."""
    folder = tmp_path_factory.mktemp("audit") / "store"
    build_small_store(str(folder))
    return folder


def test_answers_are_tables(store: Path) -> None:
    """Text is hidden where the question does not name it, as on the command line."""
    with open_audit(store) as audit:
        found = audit.ask("SELECT arm, count(*) AS n FROM evaluations GROUP BY arm ORDER BY arm")
        assert "base" in found.to_pandas()["arm"].tolist()
        assert "base" in found._repr_html_()
        said = audit.ask("SELECT * FROM generations LIMIT 3")
        assert set(said.arrow["continuation"].to_pylist()) == {HIDDEN_TEXT}
        assert str(store.parent) not in repr(audit) + audit._repr_html_()
        with pytest.raises(QuestionError):
            audit.ask("DROP TABLE runs")


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """At once, not at the first question."""
    with pytest.raises(SettingsError):
        open_audit(tmp_path)
