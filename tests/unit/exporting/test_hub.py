"""Pushing an export: the real client against a small hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from eigenshift.base.errors import SettingsError, StorageError
from eigenshift.exporting import ExportOptions, export_patch
from eigenshift.exporting.hub import push_export
from flows.command_line import main
from tests.support.fake_hub import FakeHub, run_fake_hub
from tests.support.small_store import SmallStore

NAME = "someone/patched"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that the client finds, with a token; large files go the way without Xet."""
    with run_fake_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_made_up")
        close_session()
        yield found
    close_session()


@pytest.fixture
def folder(tied: SmallStore, tmp_path: Path) -> Path:
    """An export."""
    return export_patch(tied.url, None, "patch", tmp_path / "export")


def read_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of an export's files."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_line_pushes_a_private_repository(
    hub: FakeHub, untied: SmallStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`export --push` makes a private repository that holds exactly the folder's files."""
    out = tmp_path / "out"
    arguments = ["export", "--store", untied.url, "--format", "merged", "--out", str(out)]
    with pytest.raises(SystemExit) as leaving:
        main([*arguments, "--push", NAME])
    assert leaving.value.code == 0, capsys.readouterr().err
    assert hub.repositories[NAME] == {".gitattributes": b"", **read_files(out)}
    assert hub.private == {NAME: True}
    assert "Bearer hf_made_up" in hub.tokens


def test_an_earlier_export_is_replaced_as_a_whole(hub: FakeHub, folder: Path) -> None:
    """A second push leaves no file of the first behind."""
    push_export(folder, NAME, is_private=False)
    assert hub.private == {NAME: False}
    hub.repositories[NAME]["old.safetensors"] = b"old"
    push_export(folder, NAME)
    assert set(hub.repositories[NAME]) - {".gitattributes"} == set(read_files(folder))


def test_a_repository_with_other_content_is_left_alone(hub: FakeHub, folder: Path) -> None:
    """What is not an export of ours is not overwritten."""
    hub.repositories[NAME] = {"model.safetensors": b"precious"}
    with pytest.raises(SettingsError, match="expected a new or empty repository"):
        push_export(folder, NAME)
    assert hub.repositories[NAME] == {"model.safetensors": b"precious"}


def test_a_card_the_hub_refuses_makes_no_repository(hub: FakeHub, folder: Path) -> None:
    """The hub's own words are passed on."""
    card = folder / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: no-such\n", 1))
    with pytest.raises(SettingsError, match="no-such"):
        push_export(folder, NAME)
    assert hub.repositories == {}


@pytest.mark.parametrize("place", ["/create", "/preupload/", "/lfs/", "/objects/", "/commit/"])
def test_a_hub_that_refuses_leaves_the_export(
    hub: FakeHub, tied: SmallStore, tmp_path: Path, place: str
) -> None:
    """Wherever the push fails, the folder is complete and nothing is committed."""
    hub.fails_at = place
    with pytest.raises(StorageError, match=r"HF_TOKEN.*The export is complete in"):
        export_patch(tied.url, None, "patch", tmp_path / "out", ExportOptions(push=NAME))
    assert "patch.json" in read_files(tmp_path / "out")
    assert "patch.json" not in hub.repositories.get(NAME, {})


def test_an_unreachable_hub_is_told(
    tied: SmallStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline mode is an error with a remedy, not a silent success."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE"):
        push_export(folder, NAME)


@pytest.mark.parametrize("name", ["patched", "a/b/c", "some one/patched", ""])
def test_a_bad_name_is_refused_before_anything_is_written(
    tied: SmallStore, tmp_path: Path, name: str
) -> None:
    """owner/name, or nothing happens."""
    with pytest.raises(SettingsError, match="expected owner/name"):
        export_patch(tied.url, None, "patch", tmp_path / "out", ExportOptions(push=name))
    assert list(tmp_path.iterdir()) == []
