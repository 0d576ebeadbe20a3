"""Releases: appended, never rewritten; a roll-back is a release too."""

from __future__ import annotations

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eigenshift.base.errors import ArtifactError, SettingsError
from eigenshift.ledger.releases import (
    Release,
    list_releases,
    name_user,
    promote_patch,
    read_current,
    roll_back,
    settle_current,
    slugify_model,
)
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.storage import Store

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


def test_each_further_roll_back_goes_further_back(store: Store) -> None:
    """From the third patch over the second and first to the unpatched model, never to and fro."""
    three = ArtifactReference(kind="patch", fingerprint="3" * 40)
    for number, patch in enumerate((ONE, TWO, three), start=1):
        promote_patch(store, "m", f"run-{number}", patch, "better")
    found = [roll_back(store, "m").patch for _ in range(3)]
    assert found == [TWO, ONE, None]
    with pytest.raises(SettingsError, match="unpatched"):
        roll_back(store, "m")


def test_after_a_roll_back_and_a_promotion_the_former_is_what_was_in_force(store: Store) -> None:
    """One, two, back to one, three: before three was one."""
    promote_patch(store, "m", "run-1", ONE, "better")
    promote_patch(store, "m", "run-2", TWO, "better still")
    roll_back(store, "m")
    three = ArtifactReference(kind="patch", fingerprint="3" * 40)
    promote_patch(store, "m", "run-3", three, "best")
    assert roll_back(store, "m").patch == ONE
    assert roll_back(store, "m").patch is None


def test_a_roll_back_to_a_roll_back_restores_what_that_put_in_force(store: Store) -> None:
    """A named version may be a roll-back itself, also one to the unpatched model."""
    promote_patch(store, "m", "run-1", ONE, "better")
    to_nothing = roll_back(store, "m")
    promote_patch(store, "m", "run-2", TWO, "better still")
    assert roll_back(store, "m", to_nothing.version).patch is None
    promote_patch(store, "m", "run-2", TWO, "again")
    promote_patch(store, "m", "run-1", ONE, "again")
    back = roll_back(store, "m")
    assert roll_back(store, "m", back.version).patch == TWO


def test_a_roll_back_records_who_when_and_why(store: Store) -> None:
    """By name and reason where given, else the user and host of the process."""
    first, _ = promote_patch(store, "m", "run-1", ONE, "better", model_digest="d1")
    promote_patch(store, "m", "run-2", TWO, "better still", by="gate", model_digest="d1")
    release = roll_back(store, "m", reason="complaints", by="an operator")
    assert (release.released_by, release.restores) == ("an operator", first.version)
    assert release.reason == f"complaints (back to {first.version})"
    assert release.model_digest == "d1"
    assert first.released_by == name_user()
    assert "@" in name_user()
    assert release.released_at >= first.released_at


def test_an_edited_release_is_noticed(store: Store) -> None:
    """Promoted versions are immutable: whoever changes one finds it refused, not in force."""
    release, _ = promote_patch(store, "m", "run-1", ONE, "better")
    path = f"releases/m/{release.version}.json"
    store.write_bytes(path, store.read_bytes(path).replace(b"1" * 40, b"2" * 40))
    with pytest.raises(ArtifactError, match="immutable"):
        read_current(store, "m")


def test_a_release_of_an_earlier_version_is_still_read(store: Store) -> None:
    """Records without seal, name and digest came before; a roll-back over them works."""
    for number, patch in enumerate((ONE, TWO), start=1):
        old = {
            "model_id": "m",
            "version": f"2025010{number}T000000.000000Z-abcdef",
            "previous": None,
            "run_id": f"run-{number}",
            "action": "promote",
            "released_at": f"2025-01-0{number}T00:00:00+00:00",
            "reason": "better",
            "patch": patch.model_dump(),
        }
        store.write_bytes(f"releases/m/{old['version']}.json", json.dumps(old).encode())
    assert roll_back(store, "m").patch == ONE
    assert roll_back(store, "m").patch is None


def test_a_roll_back_killed_before_the_pointer_moves_is_in_force(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is the decision; the pointer follows at the next opportunity."""
    promote_patch(store, "m", "run-1", ONE, "better")
    promote_patch(store, "m", "run-2", TWO, "better still")
    write = Store.write_bytes

    def die_at_pointer(self: Store, path: str, data: bytes) -> None:
        if path.endswith("current.json"):
            raise KeyboardInterrupt
        write(self, path, data)

    monkeypatch.setattr(Store, "write_bytes", die_at_pointer)
    with pytest.raises(KeyboardInterrupt):
        roll_back(store, "m")
    monkeypatch.undo()
    current = read_current(store, "m")
    assert current is not None
    assert current.patch == ONE
    assert settle_current(store, "m") == current
    assert Release.model_validate_json(store.read_bytes("releases/m/current.json")) == current


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
    [
        ("demo", "demo"),
        ("org/model", "org--model"),
        ("./data/demo/model", "data--demo--model"),
        ("a b:c", "a-b-c-7bede3ae"),
    ],
)
def test_model_names_become_folder_names(model_id: str, expected: str) -> None:
    """No separators or spaces get into object names."""
    assert slugify_model(model_id) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", "a--b"), ("模型", "型模"), ("a b", "a:b"), ("./org/model", "org/model")],
)
def test_two_models_have_two_histories(store: Store, one: str, other: str) -> None:
    """However alike their folder names: what is in force for one says nothing of the other."""
    promote_patch(store, one, "run-1", ONE, "better")
    assert read_current(store, other) is None
    promote_patch(store, other, "run-2", TWO, "better")
    assert [item.run_id for item in list_releases(store, one)] == ["run-1"]
    assert roll_back(store, other).patch is None
    current = read_current(store, one)
    assert current is not None
    assert current.patch == ONE


def test_releases_made_at_once_are_all_kept_and_the_pointer_is_the_newest(store: Store) -> None:
    """Twelve threads release at the same moment: none is lost, all agree on what is in force."""
    barrier = threading.Barrier(12)

    def release(number: int) -> str:
        barrier.wait()
        patch = ArtifactReference(kind="patch", fingerprint=f"{number:040d}")
        return promote_patch(Store(store.root), "org/model", f"run-{number}", patch, "test")[
            0
        ].version

    with ThreadPoolExecutor(12) as pool:
        versions = list(pool.map(release, range(12)))
    history = list_releases(store, "org/model")
    assert {item.version for item in history} == set(versions)
    pointer = Release.model_validate_json(store.read_bytes("releases/org--model/current.json"))
    assert pointer == history[-1] == read_current(store, "org/model")


def test_a_release_sorts_after_one_from_a_clock_that_is_ahead(store: Store) -> None:
    """A machine whose clock is behind still puts its release in force."""
    ahead = promote_patch(store, "org/model", "run-1", ONE, "test")[0]
    ahead = ahead.model_copy(update={"version": f"29991231T235959.999999Z{ahead.version[-7:]}"})
    ahead = ahead.model_copy(update={"seal": ahead.compute_seal()})
    store.write_bytes(f"releases/org--model/{ahead.version}.json", ahead.model_dump_json().encode())
    assert read_current(store, "org/model") == ahead
    newest = promote_patch(store, "org/model", "run-2", TWO, "test")[0]
    assert newest.version > ahead.version
    assert newest.previous == ahead.version
    assert read_current(store, "org/model") == newest


def test_a_pointer_left_behind_by_a_kill_is_settled(store: Store) -> None:
    """The history decides; settling makes the pointer agree, once."""
    first = promote_patch(store, "org/model", "run-1", ONE, "test")[0]
    old = store.read_bytes("releases/org--model/current.json")
    second = promote_patch(store, "org/model", "run-2", TWO, "test")[0]
    store.write_bytes("releases/org--model/current.json", old)
    assert settle_current(store, "org/model") == second != first
    pointer = Release.model_validate_json(store.read_bytes("releases/org--model/current.json"))
    assert pointer == second
    assert settle_current(store, "org/none") is None
