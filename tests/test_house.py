"""The house is as its map says: rooms, what is in them, and the tests that mirror them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "eigenshift"
UNIT = ROOT / "tests" / "unit"
BUILD_FILES = ("Makefile", "pyproject.toml", "hatch_build.py")
MAX_FLAT_FILES = 5
ROOMS = sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))
MODULES = [
    path
    for folder in ("data", "deployments", "docs", "eigenshift", "flows", "tasks", "tests")
    for path in ROOT.joinpath(folder).rglob("*.py")
]
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
DOCUMENTS = [*(ROOT / name for name in AT_THE_ROOT), *sorted((ROOT / "docs").rglob("*.md"))]

WRITTEN_PATH = re.compile(
    r"(?<![\w./-])((?:tests|eigenshift|flows|tasks|docs|findings)/[\w/-]+\.(?:py|md|sh))\b"
)


def test_few_files_stand_outside_the_rooms() -> None:
    """The package itself, its command line by `python -m`, the pipeline, and public names."""
    flat = sorted(path.name for path in LIBRARY.glob("*.py"))
    assert flat == ["__init__.py", "__main__.py", "models.py", "patching.py", "pipeline.py"]
    assert len(flat) <= MAX_FLAT_FILES


def test_the_readmes_map_is_the_folder() -> None:
    """Every room and nothing else, in the order that is checked."""
    text = ROOT.joinpath("README.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- rooms")[2].partition("<!-- end of rooms")[0]
    assert sorted(re.findall(r"^      (\w+)/ ", shown, re.MULTILINE)) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it(room: str) -> None:
    """Every module and package is named in the room's own description, and nothing else is."""
    folder = LIBRARY / room
    text = folder.joinpath("__init__.py").read_text(encoding="utf-8").split('"""')[1]
    listed = set(re.findall(r"\b(\w+\.py)\b", text))
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert modules <= listed
    elsewhere = listed - modules
    assert all(any(LIBRARY.rglob(name)) for name in elsewhere)
    for package in folder.glob("*/__init__.py"):
        assert f"{package.parent.name}/" in text


@pytest.mark.parametrize("room", ROOMS)
def test_unit_tests_mirror_the_rooms(room: str) -> None:
    """One folder per room; a file of tests begins with the name of the module it is about."""
    folder = UNIT / room
    assert list(folder.rglob("test_*.py")), f"{room} has no tests of its own"
    for path in folder.rglob("test_*.py"):
        where = LIBRARY / path.parent.relative_to(UNIT)
        about = path.stem.removeprefix("test_")
        modules = [module.stem for module in where.glob("*.py")]
        assert any(about == name or about.startswith(f"{name}_") for name in modules), path


def test_no_unit_test_is_outside_the_rooms_but_those_of_flat_files() -> None:
    """A new folder of tests is a new room."""
    assert {path.parent.name for path in UNIT.glob("*/__init__.py")} == set(ROOMS)
    flat = {path.stem.removeprefix("test_") for path in UNIT.glob("test_*.py")}
    assert flat <= {path.stem for path in LIBRARY.glob("*.py")} | {"public_names"}


def test_parquet_is_written_by_one_module() -> None:
    """It says why columns of floats have no statistics; no other writer may forget it."""
    wrote = re.compile(r"\bpq\.write_table\b|\bParquetWriter\(|\bto_parquet\b|\bwrite_to_dataset\b")
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("eigenshift", "flows", "tasks")
        for path in ROOT.joinpath(folder).rglob("*.py")
        if wrote.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["eigenshift/store/parquet_files.py"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_modules_that_are_there(document: Path) -> None:
    """Also in decisions of long ago: a file that moved is named by its new place."""
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.py)`", text):
        found = ROOT.joinpath(name).is_file() or any(
            path.match(name) for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts
        )
        assert found or name == "utils.py", name


def test_paths_that_are_written_out_lead_somewhere() -> None:
    """In documents, in code and in what CI runs: a path from the root is that of a file."""
    example = "eigenshift/patches/interventions/toxic_mean.py"  # CONTRIBUTING: one to be written
    ci = [path for path in ROOT.joinpath(".ci").iterdir() if path.is_file()]
    for file in [*DOCUMENTS, *MODULES, *ci, *(ROOT / name for name in BUILD_FILES)]:
        for path in WRITTEN_PATH.findall(file.read_text(encoding="utf-8")):
            assert path == example or ROOT.joinpath(path).is_file(), f"{file.name}: {path}"
