"""A stage that takes long says so; one that does not, or tells enough itself, does not."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from flows import heartbeat


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged, with a silence of a twentieth of a second."""
    found: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    keeper = Keeper()
    monkeypatch.setattr(heartbeat, "SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setattr(heartbeat.logger, "level", logging.INFO)
    heartbeat.logger.addHandler(keeper)
    yield found
    heartbeat.logger.removeHandler(keeper)


def test_a_long_stage_says_which_it_is_and_how_far(lines: list[str]) -> None:
    """Pieces that are there, pieces there will be, and the time."""
    with heartbeat.telling_of_work("generate_continuations", 9) as advance:
        advance(5)
        time.sleep(0.2)
    assert len(lines) >= 2
    assert all(line.startswith("generate_continuations       1/9  at work for ") for line in lines)


def test_a_stage_that_tells_of_its_pieces_says_no_more(lines: list[str]) -> None:
    """Each piece has its own line already."""
    with heartbeat.telling_of_work("read_file", 1000) as advance:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            advance(None)
            time.sleep(0.001)
    assert not [line for line in lines if " 0/" in line]


def test_nothing_is_left_when_the_stage_is_over_or_failed(lines: list[str]) -> None:
    """No thread, and no line afterwards."""
    with pytest.raises(OSError, match="gone"), heartbeat.telling_of_work("read_file", 1):
        raise OSError("gone")
    assert not [item for item in threading.enumerate() if item.name.startswith("heartbeat")]
    n_lines = len(lines)
    time.sleep(0.1)
    assert len(lines) == n_lines


def test_nobody_waits_in_silence_for_a_quarter_of_a_minute() -> None:
    """The bar of what a run may leave unsaid."""
    assert heartbeat.SECONDS_OF_SILENCE < 15


def draw(advancement: heartbeat.Advancement) -> list[str]:
    """Words of the bar's line on a screen of 80 letters, without the bar."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(advancement.draw())
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(line) <= 80
    return [word for word in line.split() if not set(word) <= set("━╸╺")]


def test_a_bar_tells_rate_and_time_left_by_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces of 300 rows in a minute, six to come; cached ones took no time."""
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: 1060.0)
    found = heartbeat.Advancement("score_labelled_continuations", 450, started=1000.0)
    for n_rows in (*[None] * 442, 300, 300):
        found.advance(n_rows)
    expected = "score_labelled_continuations 444/450 10 rows/s 3m 00s left"
    assert draw(found) == expected.split()


def test_a_bar_of_one_piece_tells_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to count; nor is a rate where a stage makes no rows."""
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: 1075.0)
    single, without_rows = (
        heartbeat.Advancement("choose", n_pieces, started=1000.0) for n_pieces in (1, 3)
    )
    without_rows.advance(0)
    assert draw(single) == ["choose", "1m", "15s"]
    assert draw(without_rows) == ["choose", "1/3", "2m", "30s", "left"]


PROGRAM = """
import logging, sys, time
from flows import heartbeat
from flows.command_line import _configure_logging
_configure_logging()
heartbeat.SECONDS_BEFORE_A_BAR = heartbeat.SECONDS_OF_SILENCE = 0.01
with heartbeat.telling_of_work("made_up_stage", 3) as advance:
    time.sleep(0.3)
    heartbeat.logger.info("a line")
    advance(5)
    time.sleep(0.3)
print("the result")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_terminal_shows_a_bar_and_stdout_stays_as_it_is(log_format: str) -> None:
    """On stderr, gone at the end; not among JSON lines."""
    ours, its = pty.openpty()
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "EIGENSHIFT_LOG_FORMAT": log_format},
        cwd=Path(heartbeat.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=its,
        check=True,
    )
    os.close(its)
    shown = ""
    while True:
        try:
            shown += os.read(ours, 65536).decode()
        except OSError:
            break
    os.close(ours)
    assert program.stdout == b"the result\n"
    assert "a line" in shown
    assert ("━" in shown) is (log_format == "text")
    assert ("at work for" in shown) is (log_format == "json")
    assert "\x1b[?25l" not in shown or shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_no_bar_is_drawn_where_stderr_is_no_terminal(lines: list[str]) -> None:
    """As in a file, or under a worker."""
    with heartbeat.telling_of_work("made_up_stage", 2):
        time.sleep(0.12)
    assert lines


@pytest.mark.slow
def test_what_comes_with_a_model_does_not_warn_of_devices_that_are_not_there() -> None:
    """Packages that transformers imports, where they are installed; only ours speak."""
    pytest.importorskip("torchao")
    load = (
        "from flows.command_line import _configure_logging\n_configure_logging()\nimport torchao\n"
    )
    program = subprocess.run(
        [sys.executable, "-c", load],
        cwd=Path(heartbeat.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert program.stderr == ""
