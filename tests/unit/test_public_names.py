"""Names that exports and notebooks use stay where they are."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import eigenshift
import eigenshift.api
from eigenshift.exporting.patch_files import USAGE

PUBLIC = {
    "eigenshift.models": ("LanguageModel", "TextModel", "load_model", "load_text_model"),
    "eigenshift.patching": (
        "Patch",
        "apply_patch",
        "load_patch",
        "patched_model",
        "stack_patches",
    ),
    "eigenshift.settings": ("ModelSettings", "RefreshSettings", "load_preset"),
    "eigenshift.audit": ("connect", "open_audit"),
    "eigenshift.reporting.figures": ("render_run_figures",),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there(module: str) -> None:
    """Those that READMEs of exports and docs/ show."""
    found = import_module(module)
    for name in PUBLIC[module]:
        assert callable(getattr(found, name))


@pytest.mark.parametrize("module", ["eigenshift.models", "eigenshift.patching"])
def test_faces_hold_nothing_of_their_own(module: str) -> None:
    """They name what lies in a room."""
    face = import_module(module)
    assert sorted(face.__all__) == sorted(PUBLIC[module])
    for name in face.__all__:
        assert getattr(face, name).__module__ != module


def test_what_an_export_shows_can_be_imported() -> None:
    """The lines of its README."""
    lines = [line.strip() for line in USAGE.splitlines() if line.strip().startswith("from eigen")]
    assert len(lines) == 3
    for line in lines:
        exec(line, {})  # noqa: S102 - our own lines


def test_the_packages_face_is_the_room_for_notebooks() -> None:
    """`import eigenshift as es` has every name of `eigenshift.api`."""
    assert set(eigenshift.__all__) == {"__version__", *eigenshift.api.__all__}
    for name in eigenshift.api.__all__:
        assert getattr(eigenshift, name) is getattr(eigenshift.api, name)
    assert set(eigenshift.api.__all__) <= set(dir(eigenshift))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eigenshift.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Every command does; torch comes with the first name that is used."""
    script = (
        "import sys, eigenshift; "
        "print(sorted({'torch', 'transformers', 'pyarrow', 'rich', 'pydantic'} & {*sys.modules}))"
    )
    words = [sys.executable, "-c", script]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
