"""`eigenshift verify` and `eigenshift gc` as a person runs them: what they print, how they exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenshift.ledger.presence import present
from eigenshift.store.storage import Store
from flows.command_line import main
from tests.support.small_store import SmallStore, build_small_store

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    """A store with one run and one release."""
    return build_small_store(str(tmp_path / "store"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; exit code, and what it printed on both streams."""

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as leaving:
            main(words)
        printed = capsys.readouterr()
        return int(leaving.value.code or 0), printed.out + printed.err

    return run


def test_a_sound_store_is_verified_with_exit_code_0(small: SmallStore, run: Run) -> None:
    """One line that counts what is there."""
    code, text = run("verify", "--store", small.url)
    assert (code, text.count("\n")) == (0, 1)
    assert "1 runs, 1 releases: everything fits." in text


ABOUT_A_STORE = {
    "audit": ["SELECT count(*) FROM runs"],
    "audit without a view": ["SELECT 1"],
    "audit a saved question": ["--ask", "run_history"],
    "audit an export": ["--export", "OUT"],
    "runs": [],
    "runs as JSON": ["--json"],
    "releases": [],
    "report": ["--out", "OUT"],
    "report of two": ["--against", "a", "--out", "OUT"],
    "export": ["--out", "OUT"],
    "rollback": ["--model", "demo"],
    "verify": [],
    "verify and mend": ["--repair"],
    "gc": ["--keep", "1"],
    "gc for good": ["--keep", "1", "--delete"],
    "benchmark": [],
    "plan": ["--run", "latest"],
}
"""Commands that ask something of a store that is there: what is typed after their name."""


@pytest.mark.parametrize("place", ["typo", "other", "file"])
@pytest.mark.parametrize("command", ABOUT_A_STORE)
def test_a_place_that_is_no_store_is_told(
    command: str, place: str, tmp_path: Path, run: Run
) -> None:
    """Nothing there, a folder of something else, a file: exit 2, the place named, nothing made."""
    (tmp_path / "other" / "notes").mkdir(parents=True)
    (tmp_path / "other" / "notes" / "a.txt").write_text("a")
    (tmp_path / "file").write_text("a")
    before = sorted(tmp_path.rglob("*"))
    words = [word.replace("OUT", str(tmp_path / "out")) for word in ABOUT_A_STORE[command]]
    code, text = run(command.split()[0], "--store", str(tmp_path / place), *words)
    assert code == 2, text
    assert str(tmp_path / place) in text
    assert "--store" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_is_listed_with_what_to_do_and_exit_code_1(small: SmallStore, run: Run) -> None:
    """First without a change, then set aside; a damaged object and its copy are named."""
    path = small.find_file("layers-0", "layers.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    code, text = run("verify", "--store", small.url)
    assert code == 1
    assert path.name in text
    assert "1 objects are damaged" in text
    assert "--repair" in text
    assert path.with_name("manifest.json").exists()
    code, text = run("verify", "--store", small.url, "--repair")
    assert code == 1
    assert "set aside below damaged/" in text
    assert "Start the same refresh again" in text
    assert not path.with_name("manifest.json").exists()
    code, text = run("verify", "--store", small.url)
    assert code == 1
    assert "Nothing that is here is damaged, but something is missing" in text


def test_verify_prints_one_json_object(small: SmallStore, run: Run) -> None:
    """For scripts: the verdict and what was repaired."""
    small.find_file("layers-0", "layers.parquet").unlink()
    code, text = run("verify", "--store", small.url, "--repair", "--json")
    found = json.loads(text)
    assert code == 1
    assert not found["is_fine"]
    assert len(found["damaged"]) == len(found["repaired"]) == 1


def test_gc_lists_first_and_removes_only_when_told(small: SmallStore, run: Run) -> None:
    """What the kept run used stays; an artifact that no run used goes, with --delete."""
    unused = small.artifacts.produce(
        "unused",
        step_version=1,
        settings={},
        inputs=[],
        work=lambda workspace: workspace.write_json("content.json", {}),
    ).reference
    folder = Path(small.url) / unused.folder
    kept = len(small.artifacts.list_manifests()) - 1
    code, text = run("gc", "--store", small.url, "--keep", "1")
    assert code == 0
    assert "1  unused" in text
    assert "Nothing was removed; add --delete to do it." in text
    assert folder.exists()
    code, text = run("gc", "--store", small.url, "--keep", "1", "--delete")
    assert code == 0
    assert f"{kept} artifacts stay" in text
    assert not folder.exists()
    assert run("verify", "--store", small.url)[0] == 0


def test_gc_beside_a_refresh_removes_nothing_and_exits_with_1(small: SmallStore, run: Run) -> None:
    """Who is at work is named; the same command works once it has ended."""
    with present(Store(small.url), "run", "run-at-work"):
        code, text = run("gc", "--store", small.url, "--keep", "1", "--delete")
    assert code == 1
    assert "run-at-work" in text
    assert run("gc", "--store", small.url, "--keep", "1", "--delete")[0] == 0


def test_gc_of_an_unknown_run_is_bad_input(small: SmallStore, run: Run) -> None:
    """Exit code 2; the error names the run and how to list them."""
    code, text = run("gc", "--store", small.url, "--keep", "1", "--keep-run", "no-such-run")
    assert code == 2
    assert "no-such-run" in text
    assert "select run_id" in text
