"""The notebook of the documentation: it runs, and what is committed of it hides what it must."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = DOCS / "quickstart.ipynb"
PATHS = re.compile(r"(?<![\w.])/(?:home|root|usr|opt|tmp|var|work|mnt|Users|private)/|[A-Z]:\\\\")
"""What a path of some machine begins with."""


def list_code(notebook: Any) -> list[Any]:
    """Cells that run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def list_kinds(cell: Any) -> list[list[str]]:
    """The forms of each output of a cell."""
    return [sorted(item.get("data", {"stream": None})) for item in cell["outputs"]]


@pytest.fixture(scope="module")
def committed() -> Any:
    """As it stands in the repository."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_outputs_are_those_of_a_run_from_top_to_bottom(committed: Any) -> None:
    """Every cell ran once, in order, without a warning or an error."""
    cells = list_code(committed)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {item["output_type"] for cell in cells for item in cell["outputs"]}
    assert kinds == {"execute_result"}
    assert not any("execution" in cell["metadata"] for cell in cells)


def test_outputs_hold_no_path_and_no_text(committed: Any) -> None:
    """No place of a machine; nothing the model said or read, no token of a component."""
    from eigenshift.settings import load_preset

    shown = json.dumps([cell["outputs"] for cell in list_code(committed)], ensure_ascii=False)
    assert not PATHS.search(shown)
    assert "hidden" in shown  # tokens_up is among the columns
    for source in load_preset("demo").sources[:3]:
        for line in Path(source.uri).read_text(encoding="utf-8").splitlines()[1:]:
            words = re.findall(r"[^\W\d_]{4,}(?: [^\W\d_]+){3,}", line)
            assert not any(text in shown for text in words)


@pytest.mark.slow
def test_it_runs_and_gives_the_same_kinds_of_results(committed: Any) -> None:
    """In a Jupyter kernel of its own, in an empty folder; numbers may differ by rounding."""
    runner = load_runner()
    found = runner.run_notebook(NOTEBOOK)
    for now, then in zip(list_code(found), list_code(committed), strict=True):
        assert list_kinds(now) == list_kinds(then)


def load_runner() -> ModuleType:
    """`docs/run_notebook.py`."""
    spec = importlib.util.spec_from_file_location("run_notebook", DOCS / "run_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
