"""A whole refresh of a real model: found, patched, measured, and exported again.

Skips with a reason only where the package index does not answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from tests.support.real_model import make_settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.engine,
    pytest.mark.usefixtures("prefect_server"),
]
PATCH = "eigenshift_fisher"


@pytest.fixture(scope="module")
def store(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The store of a finished refresh."""
    from flows.refresh import run_refresh

    settings = make_settings(smollm2_folder, tmp_path_factory.mktemp("real"))
    run_refresh(settings)
    return settings.store


def ask(store: str, query: str) -> list[dict[str, Any]]:
    """Rows of a query of the audit."""
    with open_audit(store) as session:
        rows: list[dict[str, Any]] = session.query(query).to_pylist()
    return rows


def test_what_it_writes_of_falls_and_the_rest_stays(store: str) -> None:
    """Animals become rarer by more than chance, at a cost that its calibration allows for."""
    rows = ask(store, "select * from evaluations where slice = 'all'")
    of = {(row["arm"], row["metric"]): row for row in rows}
    print(of)
