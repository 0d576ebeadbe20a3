"""Scratch folders: one for each process, gone with it, whatever way it ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from eigenshift.store.scratch import (
    LOCK_NAME,
    PREFIX,
    UNLOCKED_KEPT_SECONDS,
    YOUNG_SECONDS,
    scratch_folder,
)
from eigenshift.store.storage import Store

ROOT = Path(__file__).parents[3]
MAKE = "from eigenshift.store.scratch import scratch_folder; folder = scratch_folder(); "
FILL = "(folder / 'copy').write_text('x'); print(folder, flush=True); "
POOL = """
import multiprocessing, sys
from filelock import FileLock, Timeout
from eigenshift.store.scratch import LOCK_NAME, scratch_folder

def make(_):
    folder = scratch_folder()
    (folder / "copy").write_text("x")
    return str(folder)

if __name__ == "__main__":
    mine = make(0)
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        other = pool.apply(make, (0,))
        pool.close()
        pool.join()
    folder = scratch_folder()
    try:
        FileLock(folder / LOCK_NAME, timeout=0, is_singleton=False).acquire()
        is_held = False
    except Timeout:
        is_held = True
    print(other, mine, (folder / "copy").exists() and is_held)
"""


def start(*words: str, temp: Path) -> subprocess.Popen[str]:
    """A Python process with a temporary folder of its own."""
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temp), "PYTHONPATH": str(ROOT)},
    )


def age(folder: Path, seconds: float = YOUNG_SECONDS) -> None:
    """Let a folder look as old as one may be that nobody holds."""
    past = folder.stat().st_mtime - seconds - 1
    os.utime(folder, (past, past))


def test_a_process_has_one_folder() -> None:
    """Whoever asks."""
    assert scratch_folder() == scratch_folder()
    assert scratch_folder().is_dir()


def test_a_folder_that_was_cleaned_away_is_made_again() -> None:
    """A copy that was in it is fetched again, and a workspace finds its place."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    data = os.urandom(50)
    store.write_bytes("a", data)
    sha256 = hashlib.sha256(data).hexdigest()
    before = store.fetch("a", sha256).parent
    shutil.rmtree(before)
    assert store.make_workspace().is_dir()
    assert store.fetch("a", sha256).read_bytes() == data
    assert scratch_folder() != before


def test_it_goes_when_the_process_ends(tmp_path: Path) -> None:
    """With what is in it, also if it ends by an error."""
    for end in ("", "raise SystemExit(3)"):
        process = start("-c", MAKE + FILL + end, temp=tmp_path)
        output, _ = process.communicate(timeout=60)
        assert Path(output.strip()).parent == tmp_path
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_worker_of_a_pool_has_its_own_and_removes_it(tmp_path: Path, method: str) -> None:
    """Pools end their workers without asking atexit; a forked one leaves its parent's alone."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    with tempfile.TemporaryDirectory() as temp:  # the fork server's socket wants a short path
        output, _ = start(str(script), method, temp=Path(temp)).communicate(timeout=120)
        other, mine, is_there = output.split()
        assert other != mine
        assert is_there == "True"
        assert list(Path(temp).glob(f"{PREFIX}*")) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Once it is not young any more; not that of a living one, nor a folder of someone else's."""
    wait = "import time; time.sleep(600)"
    killed, living = (start("-c", MAKE + FILL + wait, temp=tmp_path) for _ in range(2))
    folders = []
    for process in (killed, living):
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    foreign, unlocked = tmp_path / "eigenshift-store", tmp_path / f"{PREFIX}unlocked"
    for folder in (foreign, unlocked):
        folder.mkdir()
    age(foreign, 100 * UNLOCKED_KEPT_SECONDS)
    age(unlocked, UNLOCKED_KEPT_SECONDS)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        age(folders[1])
        start("-c", MAKE, temp=tmp_path).communicate(timeout=60)
        assert folders[0].is_dir()  # young
        assert not unlocked.exists()
        age(folders[0])
        start("-c", MAKE, temp=tmp_path).communicate(timeout=60)
        assert not folders[0].exists()
        assert (folders[1] / "copy").exists()
        assert (folders[1] / LOCK_NAME).exists()
        assert foreign.is_dir()
    finally:
        living.kill()
        living.communicate()
        killed.communicate()


def test_a_disk_without_locks_has_a_folder_all_the_same(tmp_path: Path) -> None:
    """As some network filesystems; it is removed as ever, but by its own process only."""
    refuse = (
        "import fcntl, errno\n"
        "def flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock = flock\n"
    )
    look = f"\nassert not (folder / '{LOCK_NAME}').exists()"
    process = start("-c", refuse + MAKE + FILL.rstrip("; ") + look, temp=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert Path(output.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
