"""While a stage works and has nothing to tell: a line now and then, so that no run looks dead.

In a terminal it is a bar below the log lines instead, with rate and time left, once a stage takes
longer than a moment. Both go to stderr and leave stdout alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from eigenshift.base.durations import format_duration
from flows.log_format import has_own_screen

logger = logging.getLogger("eigenshift.run")

SECONDS_OF_SILENCE = 12.0
SECONDS_BEFORE_A_BAR = 1.5
BAR_WIDTH = 12
FRAMES_PER_SECOND = 4

Advance = Callable[[int | None], None]
"""To be called when a piece is there, with the rows made for it; None if it was cached."""


@dataclass
class Advancement:
    """How far a stage is.

    Attributes:
        stage: Its name.
        n_pieces: How many there will be.
        n_done: How many are there.
        n_made: Those that were not cached.
        n_rows: Rows of these.
        started: By the monotonic clock.
    """

    stage: str
    n_pieces: int
    n_done: int = 0
    n_made: int = 0
    n_rows: int = 0
    started: float = field(default_factory=time.monotonic)

    def advance(self, n_rows: int | None) -> None:
        """Count one piece, as `Advance`."""
        self.n_done += 1
        if n_rows is not None:
            self.n_made += 1
            self.n_rows += n_rows

    @property
    def seconds(self) -> float:
        """At work so far."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> str:
        """Rows a second; nothing where no piece has been made, or rows are not counted."""
        return f"{self.n_rows / self.seconds:,.0f} rows/s" if self.n_rows else ""

    @property
    def time_left(self) -> str:
        """By the pieces made so far; of a stage of one piece nothing is known."""
        if not self.n_made:
            return format_duration(round(self.seconds))
        left = (self.n_pieces - self.n_done) * self.seconds / self.n_made
        return f"{format_duration(round(left))} left"

    def draw(self) -> Table:
        """One line: which stage, a bar, how many of how many, rate, time left."""
        line = Table.grid(padding=(0, 2))
        is_counted = self.n_pieces > 1
        bar = ProgressBar(
            total=self.n_pieces if is_counted else None, completed=self.n_done, width=BAR_WIDTH
        )
        count = f"{self.n_done}/{self.n_pieces}" if is_counted else ""
        line.add_row(self.stage, bar, *filter(None, (count, self.rate, self.time_left)))
        return line


@contextmanager
def telling_of_work(stage: str, n_pieces: int) -> Iterator[Advance]:
    """While the block waits for a stage, show that it works: by a bar, or a line every so often.

    Args:
        stage: Its name.
        n_pieces: How many it waits for.

    Yields:
        To be called when a piece is there; lines count from then.
    """
    found = Advancement(stage, n_pieces)
    is_news, is_over = threading.Event(), threading.Event()
    console = Console(stderr=True)
    has_bar = has_own_screen() and console.is_interactive and logger.isEnabledFor(logging.INFO)

    def advance(n_rows: int | None = None) -> None:
        found.advance(n_rows)
        is_news.set()

    def tell() -> None:
        while not is_over.is_set():
            if is_news.wait(SECONDS_OF_SILENCE):
                is_news.clear()
                continue
            logger.info(
                "%-28s %d/%d  at work for %s",
                *(stage, found.n_done, n_pieces, format_duration(round(found.seconds))),
            )

    def draw() -> None:
        if is_over.wait(SECONDS_BEFORE_A_BAR):
            return
        with Live(
            get_renderable=found.draw,
            console=console,
            transient=True,
            refresh_per_second=FRAMES_PER_SECOND,
            redirect_stdout=False,
        ):
            console.show_cursor(True)  # it would stay hidden if the process were stopped meanwhile
            is_over.wait()

    teller = threading.Thread(
        target=draw if has_bar else tell, name=f"heartbeat of {stage}", daemon=True
    )
    teller.start()
    try:
        yield advance
    finally:
        is_over.set()
        is_news.set()
        teller.join()
