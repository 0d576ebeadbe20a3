"""Releases: appended, never rewritten; a roll-back is a release too."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from eigenshift.artifacts import ArtifactReference
from eigenshift.errors import SettingsError
from eigenshift.releases import (
    list_releases,
    promote_patch,
    read_current,
    roll_back,
    slugify_model,
)
from eigenshift.storage import Store

ONE, TWO = (ArtifactReference(kind="patch", fingerprint=digit * 40) for digit in "12")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store on each kind of filesystem."""
    return Store(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def test_a_promotion_is_in_force(store: Store) -> None:
    """The latest release decides what is current."""
    promote_patch(store, "org/model", "run-1", ONE, "better")
    release, is_new = promote_patch(store, "org/model", "run-2", TWO, "better still")
    assert is_new
    assert read_current(store, "org/model") == release
    assert [item.run_id for item in list_releases(store, "org/model")] == ["run-1", "run-2"]


def test_the_same_patch_is_not_released_twice(store: Store) -> None:
    """A refresh that finds what is in force adds nothing."""
    first, _ = promote_patch(store, "m", "run-1", ONE, "better")
    again, is_new = promote_patch(store, "m", "run-2", ONE, "better")
    assert (again, is_new) == (first, False)


def test_a_roll_back_undoes_the_last_change_and_keeps_history(store: Store) -> None:
    """Back to the earlier patch; the history shows all three decisions."""
    promote_patch(store, "m", "run-1", ONE, "better")
    promote_patch(store, "m", "run-2", TWO, "better still")
    release = roll_back(store, "m", None)
    assert (release.action, release.patch) == ("rollback", ONE)
    assert len(list_releases(store, "m")) == 3


def test_before_the_first_release_is_the_unpatched_model(store: Store) -> None:
    """Rolling the only release back puts no patch in force."""
    promote_patch(store, "m", "run-1", ONE, "better")
    assert roll_back(store, "m", None).patch is None


def test_a_named_version_can_be_chosen(store: Store) -> None:
    """Any version of the history can be put in force; another one is refused with the list."""
    first, _ = promote_patch(store, "m", "run-1", ONE, "better")
    promote_patch(store, "m", "run-2", TWO, "better still")
    assert roll_back(store, "m", first.version).patch == ONE
    with pytest.raises(SettingsError, match=first.version):
        roll_back(store, "m", "no-such-version")


def test_a_model_without_releases_is_a_clear_error(store: Store) -> None:
    """The models that have releases are named."""
    promote_patch(store, "known", "run-1", ONE, "better")
    with pytest.raises(SettingsError, match="known"):
        roll_back(store, "unknown", None)


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [("org/model", "org--model"), ("./data/demo/model", "data--demo--model"), ("a b:c", "a-b-c")],
)
def test_model_names_become_folder_names(model_id: str, expected: str) -> None:
    """No separators or spaces get into object names."""
    assert slugify_model(model_id) == expected
