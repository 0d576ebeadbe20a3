"""A line now and then while a stage works and has nothing to tell, so that no run looks dead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("eigenshift.run")

SECONDS_OF_SILENCE = 12.0


@contextmanager
def telling_of_work(stage: str, n_pieces: int) -> Iterator[Callable[[], None]]:
    """While the block waits for a stage, say every so often that it does.

    Args:
        stage: Its name.
        n_pieces: How many it waits for.

    Yields:
        To be called when a piece is there; what follows counts from then.
    """
    started = time.monotonic()
    n_done = 0
    is_news = threading.Event()
    is_over = False

    def advance() -> None:
        nonlocal n_done
        n_done += 1
        is_news.set()

    def tell() -> None:
        while not is_over:
            if is_news.wait(SECONDS_OF_SILENCE):
                is_news.clear()
                continue
            seconds = time.monotonic() - started
            logger.info("%-28s %d/%d  at work for %.0f s", stage, n_done, n_pieces, seconds)

    teller = threading.Thread(target=tell, name=f"heartbeat of {stage}", daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        is_over = True
        is_news.set()
        teller.join()
