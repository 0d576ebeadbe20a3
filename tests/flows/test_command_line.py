"""Habits of the command line: version, help, how much is said, completion, `init`, wrong words."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eigenshift import __version__
from eigenshift.settings import load_settings
from flows import command_line

COMMANDS = sorted(command_line.build_command().commands)


def run(*arguments: str) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as leaving:
        command_line.main(list(arguments))
    return int(leaving.value.code or 0)


def test_the_version_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """Name and number, nothing else."""
    assert run("--version") == 0
    assert capfd.readouterr().out == f"eigenshift {__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_and_shows_no_value_of_a_switch(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """By both names; what takes no value shows none."""
    words = [command] if command else []
    assert run(*words, "-h") == 0
    short = capfd.readouterr().out
    assert run(*words, "--help") == 0
    assert capfd.readouterr().out == short
    assert "--quiet" in short
    assert "<bool>" not in short
    assert max(map(len, short.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (("audit", "--list"), logging.INFO),
        (("-q", "audit", "--list"), logging.WARNING),
        (("audit", "--list", "--quiet"), logging.WARNING),
        (("audit", "-v", "--list"), logging.DEBUG),
        (("--verbose", "audit", "--list"), logging.DEBUG),
    ],
)
def test_how_much_is_said_is_chosen_before_or_behind_the_command(
    words: tuple[str, ...], level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As EIGENSHIFT_LOG_LEVEL does."""
    monkeypatch.delenv("EIGENSHIFT_LOG_LEVEL", raising=False)
    assert run(*words) == 0
    assert logging.getLogger("eigenshift").level == level


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("refres",), "Did you mean 'refresh'?"),
        (("refresh", "--presett", "demo"), "Possible options: --preset"),
        (("refresh",), "found neither. Presets are default, demo, paper"),
        (("refresh", "--preset", "demo", "--config", "x"), "found both: preset demo and x."),
        (("refresh", "--preset", "demp"), "Did you mean 'demo'?"),
        (("tune", "--preset", "demo", "--set", "tune.factor=1"), "Did you mean 'tune.factors'?"),
        (("audit", "--ask", "damped_component"), "Did you mean 'damped_components'?"),
        (("audit", "SELEC 1"), "audit query refused: Parser Error"),
        (("audit", "SELECT nothing FROM (SELECT 1 AS one)"), "audit query refused: Binder Error"),
    ],
)
def test_wrong_words_are_told_with_what_was_probably_meant(
    words: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2; nothing is started."""
    store = tmp_path / "store"
    (store / "runs").mkdir(parents=True)
    store.joinpath("runs", "20260101T000000.000Z-aaaaaa.json").write_text("{}")
    if words[0] == "audit":
        words = (*words, "--store", str(store))
    assert run(*words) == 2
    said_now = " ".join(capfd.readouterr().err.split())
    assert said in said_now
    assert "starting Prefect" not in said_now


TYPED = {
    "eigenshift ref": "refresh",
    "eigenshift refresh --pre": "--preset",
    "eigenshift refresh --preset smol": "smollm2\nsmollm2-chat",
    "eigenshift refresh --set generation.n_s": "generation.n_samples",
    "eigenshift init --source jigsaw_m": "jigsaw_multilingual",
}
"""What is typed when the key is pressed -> what is offered."""
PRESS = """
import os, sys
from flows.command_line import main
for typed in sys.argv[1:]:
    os.environ.update(COMP_WORDS=typed, COMP_CWORD=str(len(typed.split()) - 1))
    sys.argv = ["eigenshift"]
    try:
        main()
    except SystemExit:
        print("--")
heavy = {"torch", "transformers", "prefect", "duckdb", "pyarrow", "numpy", "sklearn"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_shell_completes_and_waits_for_nothing_heavy() -> None:
    """Commands, options, presets, settings; each press of the key starts the program.

    As the script asks that `--install-completion` writes; no torch, no Prefect, no database.
    """
    found = subprocess.run(
        [sys.executable, "-c", PRESS, *TYPED],
        env={**os.environ, "_EIGENSHIFT_COMPLETE": "complete_bash"},
        cwd=Path(command_line.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    *offered, imported = found.stdout.split("--\n")
    assert [part.strip() for part in offered] == list(TYPED.values()), found.stderr
    assert imported.strip() == "[]"


def test_init_writes_a_file_that_loads_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It tells what to type next, and what is not there yet."""
    monkeypatch.chdir(tmp_path)
    sources = ("jigsaw=a.csv", "real_toxicity_prompts=s3://bucket/b.jsonl", "sentences=c.txt")
    tmp_path.joinpath("a.csv").touch()
    words = ["init", "--model", "gpt2", "--out", "mine.yaml"]
    for source in sources:
        words += ["--source", source]
    assert run(*words) == 0
    told = capfd.readouterr()
    assert "eigenshift refresh --config mine.yaml" in told.out
    assert told.err == "note: ./c.txt is not there yet\n"
    loaded = load_settings(Path("mine.yaml"))
    assert loaded.sources[0].uri == str(tmp_path / "a.csv")
    before = Path("mine.yaml").read_text()
    assert run(*words) == 2
    assert "expected a new file" in capfd.readouterr().err
    assert Path("mine.yaml").read_text() == before
    words[words.index("mine.yaml")] = "nowhere/mine.yaml"
    assert run(*words) == 2
    assert "expected to write a file" in capfd.readouterr().err
