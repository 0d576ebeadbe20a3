"""What starting a flow imports: a run with nothing to do needs no model library, and is quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "huggingface_hub", "scipy", "sklearn", "matplotlib")
LISTING = """
import importlib, sys
from flows.prefect_environment import prepare_environment
prepare_environment()
importlib.import_module(sys.argv[1])
print(*sorted(set(sys.modules) & set(sys.argv[2:])))
"""


@pytest.mark.parametrize(
    "module",
    ["flows.refresh", "flows.compare", "flows.surviving", "eigenshift.toxicity.scorers.identity"],
)
def test_what_is_heavy_is_imported_where_there_is_work(module: str) -> None:
    """They take seconds to import; stages import them when they run (`Stage.work`)."""
    done = subprocess.run(
        [sys.executable, "-c", LISTING, module, *HEAVY],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.split() == []
