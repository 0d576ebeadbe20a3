"""A stage that takes long says so; one that does not, or tells enough itself, does not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

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
        advance()
        time.sleep(0.2)
    assert len(lines) >= 2
    assert all(line.startswith("generate_continuations       1/9  at work for ") for line in lines)


def test_a_stage_that_tells_of_its_pieces_says_no_more(lines: list[str]) -> None:
    """Each piece has its own line already."""
    with heartbeat.telling_of_work("read_file", 1000) as advance:
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            advance()
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
