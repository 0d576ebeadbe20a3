"""A whole refresh of a real model: found, patched, measured, and exported again.

Skips with a reason only where the package index does not answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.arms import BASE_ARM
from tests.support.real_model import STUDIED_LAYER, make_settings

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


def test_what_it_is_said_not_to_say_becomes_rare_and_the_rest_stays(store: str) -> None:
    """Animals become rarer by more than chance, at a cost that its calibration allows for."""
    rows = ask(
        store,
        "select arm, metric, value, low from evaluations where slice = 'all' and metric in "
        "('toxicity_rate', 'toxicity_reduction', 'perplexity')",
    )
    of = {(row["arm"], row["metric"]): row for row in rows}
    base = of[BASE_ARM, "toxicity_rate"]["value"]
    assert base > 0.05
    assert of[PATCH, "toxicity_rate"]["value"] < base
    assert of[PATCH, "toxicity_reduction"]["low"] > 0
    rise = of[PATCH, "perplexity"]["value"] / of[BASE_ARM, "perplexity"]["value"] - 1
    assert rise == pytest.approx(0.0, abs=0.05)


def test_its_layers_are_told_apart_by_sql(store: str) -> None:
    """The layer asked for has units that tell the labelled texts apart."""
    (row,) = ask(store, "select layer, max(auroc) as best from neurons group by layer")
    assert row["layer"] == STUDIED_LAYER
    assert row["best"] > 0.8
