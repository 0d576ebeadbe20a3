"""Version pairs that break Prefect without a word, and promises of the pins."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def read_ranges() -> dict[str, Requirement]:
    """Dependencies in pyproject.toml, extras included."""
    text = (ROOT / "pyproject.toml").read_text()
    quoted = re.findall(r'^  "([A-Za-z][^"]*[<>=~!][^"]*)"', text, flags=re.MULTILINE)
    return {requirement.name.lower(): requirement for requirement in map(Requirement, quoted)}


def read_pins(python: str) -> dict[str, str]:
    """Pins of constraints.txt that apply to one Python version."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            pins[requirement.name.lower()] = str(requirement.specifier).removeprefix("==")
    return pins


def test_fastapi_is_one_prefect_starts_with() -> None:
    """Prefect 3.8 with fastapi 0.151 or newer: every flow dies with a TypeError at start."""
    if Version(metadata.version("prefect")) >= Version("3.9"):
        pytest.skip("Prefect 3.9 bounds fastapi itself")
    assert Version(metadata.version("fastapi")) < Version("0.151")


def test_sqlalchemy_is_one_prefect_schedules_with() -> None:
    """Prefect 3.8 with SQLAlchemy 2.1: cron schedules silently never create runs."""
    if Version(metadata.version("prefect")) >= Version("3.9"):
        pytest.skip("Prefect 3.9 works with SQLAlchemy 2.1")
    assert Version(metadata.version("sqlalchemy")) < Version("2.1")


@pytest.mark.parametrize(("package", "broken"), [("fastapi", "0.151.0"), ("sqlalchemy", "2.1.0")])
def test_the_ranges_exclude_the_broken_versions(package: str, broken: str) -> None:
    """Whoever installs without our pins is protected too."""
    assert not read_ranges()[package].specifier.contains(broken)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python: str) -> None:
    """Ranges and pins agree on every Python version we support."""
    pins = read_pins(python)
    for name, requirement in read_ranges().items():
        if name in {"gcsfs", "adlfs"}:
            continue  # extras for other clouds: not part of `make install`
        assert name in pins, f"{name} has no pin for Python {python}"
        assert requirement.specifier.contains(pins[name], prereleases=True), name


def test_what_is_installed_is_what_is_pinned() -> None:
    """The suite's result is about the pinned versions."""
    import sys

    pins = read_pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    for name in ("prefect", "torch", "transformers", "datasets", "pyarrow", "duckdb", "detoxify"):
        assert metadata.version(name).partition("+")[0] == pins[name]
