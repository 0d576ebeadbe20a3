"""Many requests at once, for those whose time goes into waiting for storage.

Knows nothing of storage itself. Work that takes a core belongs in tasks, whose number a run's
settings bound.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

N_REQUESTS = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ask_concurrently(ask: Callable[[Item], Answer], items: Iterable[Item]) -> list[Answer]:
    """Return an answer for each item, in their order, waiting for up to 16 at a time.

    Each is asked in a copy of the caller's context, so what is counted there is counted for it. If
    one fails, its error is raised once those under way have ended; the others are not asked.
    """
    items = list(items)
    if len(items) < 2:
        return [ask(item) for item in items]
    pool = ThreadPoolExecutor(min(N_REQUESTS, len(items)))
    try:
        tasks = [pool.submit(contextvars.copy_context().run, ask, item) for item in items]
        wait(tasks, return_when=FIRST_EXCEPTION)
    except BaseException:  # the caller is interrupted and does not wait for those under way
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return [task.result() for task in tasks]
