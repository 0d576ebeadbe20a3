"""What stands beside the code for those who install, develop, report or cite is valid, and true."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import eigenshift
from tests.test_dependencies import PYTHONS
from tests.test_dependencies import read_pins as read_pins_by_packaging

ROOT = Path(__file__).parents[1]
FORMS = {
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/wish.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "CITATION.cff": "citation-file-format",
}
PIP_LINES = """
Obtaining file:///clone
Collecting numpy>=2.0 (from eigenshift==0.1.0)
  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl (16.5 MB)
Collecting six (from python-dateutil)
  Using cached six-1.17.0-py2.py3-none-any.whl.metadata (1.7 kB)
Collecting torch==2.13.0
  Downloading https://example.org/whl/torch-2.13.0-cp311-cp311-linux_x86_64.whl (1.2 GB)
""".strip().split("\n")
UV_LINES = ["Resolved 4 packages in 294ms", "Downloading pandas (11.8MiB)", " Downloaded pandas"]


def load_script(name: str) -> ModuleType:
    """A script of `.ci/`, which has no ending."""
    loader = SourceFileLoader(name, str(ROOT / ".ci" / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _no_bytecode() -> None:
    """Loading the scripts writes nothing into the repository."""
    sys.dont_write_bytecode = True


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    """`.ci/install_packages`."""
    return load_script("install_packages")


@pytest.fixture(scope="module")
def doctor() -> ModuleType:
    """`.ci/doctor`."""
    return load_script("doctor")


@pytest.mark.parametrize("file", FORMS)
def test_forms_and_citation_fit_their_schema(file: str) -> None:
    """Those that GitHub and the citation format publish."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{FORMS[file]}"]
    found = subprocess.run([*words, str(ROOT / file)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    """A release that forgets one of the three places fails here."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert found is not None
    assert citation["version"] == found[1] == eigenshift.__version__
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2509.16660"
    assert len(paper["authors"]) == 4


def test_the_hooks_run_what_make_check_runs() -> None:
    """No check is only in one of the two, and none has a version of its own."""
    document = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = document["repos"]
    hooks = {re.sub(r" --.*", "", hook["entry"]) for hook in local["hooks"]}
    rule = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncheck:")[2]
    lines = re.findall(r"^\t@\$\(BIN\)/([^>|\n]+)", rule.partition("\n\n")[0], re.MULTILINE)
    checks = {".venv/bin/" + re.sub(r" (--|\.( |$)).*", "", line).strip() for line in lines}
    assert hooks == checks
    assert all(hook["language"] == "system" for hook in local["hooks"])


def test_every_check_list_of_the_templates_can_be_done() -> None:
    """Commands and files that templates name are there."""
    texts = [
        path.read_text(encoding="utf-8")
        for path in ROOT.joinpath(".github").rglob("*")
        if path.is_file()
    ]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in texts:
        assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
        for name in re.findall(r"\b([A-Z]+\.md)\b", text):
            assert (ROOT / name).is_file()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_doctor_reads_pins_as_pip_does(python: str, doctor: ModuleType) -> None:
    """Markers included; it must do without the package that reads them."""
    version = tuple(int(part) for part in python.split("."))
    expected = {doctor.normalise(name): pin for name, pin in read_pins_by_packaging(python).items()}
    assert doctor.read_pins(version) == expected


def test_the_doctor_finds_an_installed_version_that_is_not_the_pinned_one(
    doctor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names both, with what to do."""
    monkeypatch.setattr(doctor, "PYTHON", Path(sys.executable))
    assert doctor.check_pins()[0] == "ok"
    pins = doctor.read_pins(sys.version_info[:2])
    monkeypatch.setattr(doctor, "read_pins", lambda _: {**pins, "pytest": "0.1"})
    state, _, found, remedy = doctor.check_pins()
    assert state == "no"
    assert re.fullmatch(r"pytest [\d.]+ \(pinned 0\.1\)", found)
    assert "make install" in remedy


def test_the_doctor_says_how_to_begin(
    doctor: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a clone without an environment: exit code 1, each trouble with its remedy below it."""
    monkeypatch.setattr(doctor, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(doctor, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    assert doctor.main() == 1
    lines = capsys.readouterr().out.split("\n")
    place = next(place for place, line in enumerate(lines) if line.startswith("no    environment"))
    assert lines[place + 1].strip() == "-> make install"


def test_progress_counts_what_pip_says(installer: ModuleType) -> None:
    """Packages, megabytes in one unit, and the latest by name."""
    progress = installer.Progress()
    for line in PIP_LINES:
        progress.read(line)
    assert progress.describe() == "3 packages found, 1,217 MB fetched, now torch (1.2 GB)"
    progress.read("Installing collected packages: six, numpy, torch")
    assert progress.describe() == "0 of 3 packages installed"


def test_progress_counts_what_uv_says(installer: ModuleType) -> None:
    """Its words are others."""
    progress = installer.Progress()
    for line in UV_LINES:
        progress.read(line)
    assert progress.describe() == "4 packages found, 12 MB fetched, now pandas (11.8 MB)"
    progress.read("Prepared 4 packages in 452ms")
    assert progress.describe() == "0 of 4 packages installed"


@pytest.mark.parametrize(
    ("has_uv", "config", "environment", "expected"),
    [
        (False, "", {}, ["pip"]),
        (True, "global.timeout='9'", {}, ["uv", "pip"]),
        (True, "global.index-url='https://mirror.example'", {}, ["pip"]),
        (True, ":env:.find-links='/wheels'", {"UV_FIND_LINKS": "/wheels"}, ["uv", "pip"]),
        (True, "global.extra-index-url='x'", {"EIGENSHIFT_INSTALLER": "uv"}, ["uv"]),
        (True, "", {"EIGENSHIFT_INSTALLER": "pip"}, ["pip"]),
    ],
)
def test_uv_is_not_used_where_it_would_ask_another_index(
    has_uv: bool,
    config: str,
    environment: dict[str, str],
    expected: list[str],
    installer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not read pip's configuration: a private index would be passed over."""
    for name in (*installer.UV_INDEX, "EIGENSHIFT_INSTALLER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(installer.shutil, "which", lambda _: "/bin/uv" if has_uv else None)
    shown = subprocess.CompletedProcess([], 0, stdout=config)
    monkeypatch.setattr(installer.subprocess, "run", lambda *_, **__: shown)
    assert installer.choose_tools() == expected


def test_a_failed_installer_is_followed_by_the_next_and_shows_why(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it printed, its exit code, and then pip."""
    script = "import sys; print('no such flag'); sys.exit(7)"
    commands = {"uv": [sys.executable, "-c", script], "pip": [sys.executable, "-c", "pass"]}
    monkeypatch.setattr(installer, "choose_tools", lambda: ["uv", "pip"])
    monkeypatch.setattr(installer, "name_command", lambda tool, _: commands[tool])
    assert installer.main([]) == 0
    shown = capsys.readouterr()
    assert "no such flag\nerror: uv ended with exit code 7." in shown.err
    assert "Once more, with pip" in shown.out
    assert re.search(r"Installed in \d s: 0 new packages", shown.out)


def test_a_long_installation_is_never_silent(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line each interval, ten seconds but for this test, though the installer says nothing."""
    assert installer.SECONDS_BETWEEN_LINES == 10
    monkeypatch.setattr(installer, "SECONDS_BETWEEN_LINES", 0.05)
    command = [sys.executable, "-c", "import time; time.sleep(0.5)"]
    assert installer.follow(command, installer.Progress(), 0.0) == 0
    assert capsys.readouterr().out.count("0 packages found") >= 4


def test_scripts_of_ci_can_be_executed() -> None:
    """The mode is in the repository."""
    scripts = [path for path in ROOT.joinpath(".ci").iterdir() if not path.suffix]
    assert scripts
    assert all(os.access(path, os.X_OK) for path in scripts)
