"""Where Prefect's database lies: beside a local store, and never where nobody would look."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from eigenshift.base.errors import SettingsError, StorageError
from flows import prefect_environment
from flows.prefect_environment import HOME, choose_home, create_home


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, in a process that has not imported Prefect."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(HOME, str(tmp_path / ".eigenshift" / "prefect"))
    monkeypatch.setattr(prefect_environment, "GIVEN_HOME", None)
    return tmp_path


def test_a_local_stores_home_is_in_it(outside: Path) -> None:
    """Of the default store that is where it always was."""
    assert choose_home("./.eigenshift") == outside / ".eigenshift" / "prefect"
    create_home(str(outside / "elsewhere"))
    assert os.environ[HOME] == str(outside / "elsewhere" / "prefect")
    assert [path.name for path in outside.iterdir()] == ["elsewhere"]


def test_another_stores_home_is_the_users(outside: Path) -> None:
    """Unless a former version made one in the working folder: its runs stay to be seen."""
    assert choose_home("memory://far") == outside / "state" / "eigenshift" / "prefect"
    former = outside / ".eigenshift" / "prefect"
    former.mkdir(parents=True)
    assert choose_home("memory://far") == former


def test_a_home_that_was_given_is_taken(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the store."""
    monkeypatch.setattr(prefect_environment, "GIVEN_HOME", str(outside / "mine"))
    monkeypatch.setenv(HOME, str(outside / "mine"))
    create_home(str(outside / "elsewhere"))
    assert os.environ[HOME] == str(outside / "mine")
    assert [path.name for path in outside.iterdir()] == ["mine"]


def test_a_home_that_cannot_be_made_is_told(outside: Path) -> None:
    """In one message with the variable that mends it."""
    (outside / "file").write_text("a")
    with pytest.raises(SettingsError, match="Set PREFECT_HOME"):
        create_home(str(outside / "file" / "store"))


def test_a_full_disk_is_told_before_prefect_waits_for_its_server(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a server named there is no database of ours to make."""
    monkeypatch.setattr(prefect_environment, "MIN_FREE_BYTES", 1 << 60)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    create_home(str(outside / "store"))
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(StorageError, match=r"The disk is full\. Free some space"):
        create_home(str(outside / "store"))
