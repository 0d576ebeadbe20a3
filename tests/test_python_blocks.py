"""Python that documents show: it runs as it stands, and is as short as is said."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import eigenshift.api

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.joinpath("docs").rglob("*.md")),
    *sorted(ROOT.joinpath("data").rglob("*.md")),
    *sorted(ROOT.joinpath("deployments").rglob("*.md")),
]
BLOCK = re.compile(r"^( *)```(?:python|py)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGE = ROOT / "docs" / "python.md"
MAX_LINES = 10
RUN_HERE = {
    "CONTRIBUTING.md",
    "docs/audit.md",
    "docs/python.md",
    "docs/quantisation.md",
    "README.md",
}
"""Whose blocks a test below runs."""


def list_blocks(document: Path) -> list[str]:
    """Its blocks of Python, in their order."""
    text = document.read_text(encoding="utf-8")
    return [textwrap.dedent(found[2]) for found in BLOCK.finditer(text)]


def run(code: str, names: dict[str, Any], replaced: dict[str, str] | None = None) -> None:
    """Run a block, with names of places that are here instead of the reader's own."""
    for shown, here in (replaced or {}).items():
        assert shown in code
        code = code.replace(shown, here)
    exec(compile(code, "block", "exec"), names)  # noqa: S102 - our own documents


def test_every_block_is_run_by_a_test() -> None:
    """A document with a new one has to be added here."""
    found = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS if list_blocks(path)}
    assert found == RUN_HERE


@pytest.mark.parametrize("number", range(len(list_blocks(PAGE))))
def test_each_step_takes_ten_lines_or_fewer(number: int) -> None:
    """As the page says; blank lines do not count."""
    block = list_blocks(PAGE)[number]
    assert len([line for line in block.splitlines() if line.strip()]) <= MAX_LINES


def test_the_page_shows_every_function() -> None:
    """In a block, or it is not documented."""
    called = {
        node.attr
        for block in list_blocks(PAGE)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
    }
    shown = called | set(re.findall(r"es\.(\w+)\(", PAGE.read_text(encoding="utf-8")))
    functions = {
        name for name in eigenshift.api.__all__ if inspect.isfunction(getattr(eigenshift.api, name))
    }
    assert functions <= shown


def test_the_readmes_lines_are_those_of_the_page() -> None:
    """They are run there."""
    (block,) = list_blocks(ROOT / "README.md")
    page = PAGE.read_text(encoding="utf-8")
    lines = [line for line in block.splitlines() if line.strip()]
    assert lines
    assert all(line in page for line in lines)


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the bundled demo, in a folder with a store; nothing is printed."""
    from tests.support.small_store import build_small_store

    monkeypatch.chdir(tmp_path)
    build_small_store(str(tmp_path / ".eigenshift"))
    names: dict[str, Any] = {}
    for block in list_blocks(PAGE):
        run(block, names)
    assert names["study"].settings.generation.n_samples == 5
    assert names["reduction"].low <= names["reduction"].value <= names["reduction"].high
    assert len(names["frame"]) > 20
    assert len(names["answer"]) > 0
    loaded = names["es"].load_patch(names["model"], "my-patch")
    assert loaded.patch.description == names["patch"].patch.description
    assert capsys.readouterr().out == ""


def test_the_audits_block_answers(tmp_path: Path) -> None:
    """Of a store of this machine."""
    from tests.support.small_store import build_small_store

    build_small_store(str(tmp_path))
    (block,) = list_blocks(ROOT / "docs" / "audit.md")
    names: dict[str, Any] = {}
    run(block, names, {"s3://bucket/prefix": str(tmp_path)})
    assert names["connection"].sql("SELECT count(*) FROM evaluations").fetchall()[0][0] > 0


@pytest.mark.slow
def test_the_quantised_models_block_writes_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    """Of a tiny model."""
    monkeypatch.chdir(tmp_path)
    (block,) = list_blocks(ROOT / "docs" / "quantisation.md")
    run(block, {}, {"my-org/my-model": str(tiny_model_folder)})
    written = {path.name for path in tmp_path.joinpath("my-model-nf4").iterdir()}
    assert {"config.json", "tokenizer.json"} <= written


def test_the_contributors_intervention_works() -> None:
    """The function of the first file, and the registry's line, among the names there."""
    from eigenshift.patches.edits import HeadEdit, ModelEdit
    from eigenshift.patches.interventions import registry
    from eigenshift.patches.interventions.interface import Evidence, Outcome, split_states
    from eigenshift.patches.requests import Need, PatchRequest

    (block,) = list_blocks(ROOT / "CONTRIBUTING.md")
    function, _, entry = block.partition("# eigenshift/patches/interventions/registry.py")
    names: dict[str, Any] = {
        **{"np": np, "split_states": split_states, "HeadEdit": HeadEdit, "ModelEdit": ModelEdit},
        **{"Evidence": Evidence, "Outcome": Outcome, "PatchRequest": PatchRequest},
    }
    run(function, names)
    generator = np.random.default_rng(0)
    states = pa.table(
        {
            "is_toxic": [True, False] * 6,
            "state": generator.normal(size=(12, 8)).astype(np.float32).tolist(),
        }
    )
    evidence = Evidence(None, {Need.head_states: states})  # type: ignore[arg-type]
    outcome = names["damp_toxic_mean"](evidence, PatchRequest(factor=0.25))
    assert outcome.edit.head.rank == 1
    line = eval(f"{{{entry}}}", dict(vars(registry)))  # noqa: S307 - our own document
    assert line["toxic_mean"].builder == "toxic_mean.damp_toxic_mean"
    assert line["toxic_mean"].needs == registry.STATES
