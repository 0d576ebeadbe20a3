"""A made-up package for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.fetching import catalogue
from tests.support.packaged_models import MadeUpPackage, build_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory, neutral_texts: list[str]) -> MadeUpPackage:
    """A tiny model in a wheel."""
    return build_package(tmp_path_factory.mktemp("package"), neutral_texts)


@pytest.fixture
def listed(package: MadeUpPackage, monkeypatch: pytest.MonkeyPatch) -> MadeUpPackage:
    """The made-up package, known to the catalogue."""
    monkeypatch.setitem(catalogue.CATALOGUE, package.model.name, package.model)
    return package


@pytest.fixture
def index(package: MadeUpPackage, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up package where pip looks, and no other index."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.wheel.parent))
    return package.wheel.parent
