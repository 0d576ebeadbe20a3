"""The architectures of docs/architectures.md: each row is what a run of it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.architecture_runs import ALL, read_page, try_architecture

MIN_ARCHITECTURES = 40


def test_the_page_has_a_row_for_every_architecture() -> None:
    """And no others; the bar is forty that work."""
    rows = read_page()
    assert list(rows) == list(ALL)
    assert sum("| works |" in row for row in rows.values()) >= MIN_ARCHITECTURES


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store: the data are read once for all."""
    return tmp_path_factory.mktemp("architectures")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_an_architecture_is_as_the_page_says(name: str, shared_folder: Path) -> None:
    """Refresh, merged export, reload, the run's continuations again; or a refusal with a reason."""
    assert try_architecture(name, shared_folder).show() == read_page()[name]
