"""Many requests at once: order, context, and what happens when one fails."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar

import pytest

from eigenshift.store.concurrency import N_REQUESTS, ask_concurrently

PLACE: ContextVar[str] = ContextVar("place", default="nowhere")


def test_answers_come_in_the_order_of_the_items() -> None:
    """Although the later ones are ready first."""

    def ask(item: int) -> int:
        time.sleep(0.002 * (10 - item))
        return 2 * item

    assert ask_concurrently(ask, iter(range(10))) == [2 * item for item in range(10)]
    assert ask_concurrently(ask, []) == []


def test_all_wait_together() -> None:
    """Each answer takes the others to be under way: one after the other would never end."""
    together = threading.Barrier(N_REQUESTS, timeout=30)
    assert len(ask_concurrently(lambda _: together.wait(), range(N_REQUESTS))) == N_REQUESTS


def test_each_is_asked_in_the_callers_context() -> None:
    """Which is where the meter of a task is."""
    token = PLACE.set("here")
    try:
        assert ask_concurrently(lambda _: PLACE.get(), range(3)) == ["here"] * 3
    finally:
        PLACE.reset(token)


@pytest.mark.parametrize("failing", [0, 7])
def test_an_error_is_raised_and_the_rest_is_not_asked(failing: int) -> None:
    """Those under way come to their end first, so nothing goes on behind the caller's back."""
    asked: list[int] = []

    def ask(item: int) -> None:
        asked.append(item)
        if item == failing:
            raise ValueError(f"no answer to {item}")
        time.sleep(0.05)

    with pytest.raises(ValueError, match=f"no answer to {failing}"):
        ask_concurrently(ask, range(400))
    n_asked = len(asked)
    assert n_asked < 400
    time.sleep(0.1)
    assert len(asked) == n_asked
