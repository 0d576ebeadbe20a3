"""A folder written for its user is there whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.store.output_folder import writing_folder


def test_the_folder_has_its_name_only_when_all_is_written(tmp_path: Path) -> None:
    """Until then everything lies in a sibling."""
    out = tmp_path / "below" / "out"
    with writing_folder(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "content"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_what_was_interrupted(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    """Neither the folder nor its sibling, whatever came between."""

    def write_half(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise interruption

    with pytest.raises(interruption), writing_folder(tmp_path / "out") as folder:
        write_half(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Half a gigabyte under a hidden name would be found by nobody."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from eigenshift.store.output_folder import writing_folder\n"
        "with writing_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "file").read_text() == "half"
    with writing_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Of two that write to one place the later one to end is refused; neither is mixed."""

    def write_beside(first: Path) -> None:
        (first / "file").write_text("first")
        with writing_folder(tmp_path / "out") as second:
            (second / "file").write_text("second")
        assert (first / "file").read_text() == "first"

    with (
        pytest.raises(SettingsError, match="expected to write a folder"),
        writing_folder(tmp_path / "out") as folder,
    ):
        write_beside(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "second"


def test_an_empty_folder_is_taken_and_one_with_content_refused(tmp_path: Path) -> None:
    """What is there is nobody's to overwrite."""
    with writing_folder(tmp_path) as folder:
        (folder / "file").write_text("first")
    with pytest.raises(SettingsError, match="new or empty folder"), writing_folder(tmp_path):
        raise AssertionError("not reached")
    assert (tmp_path / "file").read_text() == "first"
