"""What SIGTERM and Ctrl-C do to a run: it ends within seconds, told, its claims released.

A signal is how Kubernetes, systemd and `timeout` stop a process, and the next one, SIGKILL, follows
soon. Work in the threads of tasks cannot be interrupted, requests may be tried again for minutes,
and the server of the command may have got the signal as well. So nothing is waited for here but
what has to be told, each for a bounded time; then the process ends without its usual clearing up.
What was finished is in the store: the same command goes on from it. In a process that is not ours
to end, a notebook's for instance, signals keep the meaning they have there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_TELL = 6.0
"""For all that has to be told, together; a pod has 30 in all, and we promise 10."""
SECONDS_FOR_EACH = 0.5
"""For what comes when that time is over."""
ADVICE = "Finished work is kept: start the same command again to go on."
CLEAR_LINE = "\r\x1b[K"
"""In a terminal, where a bar may be drawn."""
EXIT_BY_SIGNAL = 128
"""Added to the signal's number, as shells do: 143 after SIGTERM, 130 after Ctrl-C."""

EXIT_INTERRUPTED = EXIT_BY_SIGNAL + signal.SIGINT

Handler = Callable[[int, FrameType | None], Any] | int | None


class _Ending:
    """What is to be done when the process is told to stop; one per process."""

    def __init__(self) -> None:
        self.is_ours = False
        self.says_last = False
        self.has_begun = False
        self.last_words: str | None = None
        """One line for stdout, the JSON object of the run."""
        self.duties: list[Callable[[str], None]] = []


_ENDING = _Ending()


@contextmanager
def ending_by_signals(*, says_last: bool) -> Iterator[None]:
    """Let a signal end this process, from here to the end of the block; for the command line.

    Args:
        says_last: Whether stdout ends with the line given to `say_last`.
    """
    before = _ENDING.is_ours, _ENDING.says_last
    _ENDING.is_ours, _ENDING.says_last = True, says_last
    try:
        with _listening():
            yield
    finally:
        _ENDING.is_ours, _ENDING.says_last = before


@contextmanager
def on_stop(duty: Callable[[str], None]) -> Iterator[None]:
    """Have something done if a signal ends this process inside the block; the last first.

    Prefect puts a handler of its own around a flow; inside the block ours is back.

    Args:
        duty: Called with the signal's name, in a thread of its own.
    """
    _ENDING.duties.append(duty)
    try:
        with _listening():
            yield
    finally:
        _ENDING.duties.remove(duty)


def say_last(line: str) -> None:
    """Give the line that stdout ends with, where that is wanted, if the process is stopped."""
    _ENDING.last_words = line


def leave_interrupted() -> None:
    """End a command that starts no run, after Ctrl-C: requests in threads may be tried for minutes.

    Returns only where nothing is left to wait for.
    """
    _write(2, "error: stopped by SIGINT.")
    main = threading.main_thread()
    if any(thread is not main and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(EXIT_INTERRUPTED)


@contextmanager
def _listening() -> Iterator[None]:
    """Put our handlers in place, where this process is ours and this is its main thread.

    A signal that was ignored when the process began, as Ctrl-C is for one in the background, stays
    so.
    """
    is_main = threading.current_thread() is threading.main_thread()
    former: dict[signal.Signals, Handler] = {}
    if _ENDING.is_ours and is_main:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        if not _ENDING.has_begun:
            for number, handler in former.items():
                signal.signal(number, handler)


def _stop(number: int, _frame: FrameType | None) -> None:
    """The handler: begins the end, and never returns. `timeout` sends its signal twice."""
    if not _ENDING.has_begun:
        _ENDING.has_begun = True
        stderr = os.dup(2)
        with suppress(OSError):
            # Threads of Prefect tell of refused connections, each by a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        threading.Thread(target=_end, args=(number, stderr), name="ending", daemon=True).start()
    while True:
        time.sleep(SECONDS_TO_TELL)


def _end(number: int, stderr: int) -> None:
    """Do every duty for as long as there is time, say what happened, and end the process."""
    name = signal.Signals(number).name
    deadline = time.monotonic() + SECONDS_TO_TELL
    try:
        for duty in reversed(_ENDING.duties):
            _do(duty, name, deadline)
        _kill_children()
        above = CLEAR_LINE if os.isatty(stderr) else ""
        _write(stderr, f"{above}error: stopped by {name}. {ADVICE}")
        if _ENDING.says_last and _ENDING.last_words is not None:
            _write(1, _ENDING.last_words)
    finally:
        os._exit(EXIT_BY_SIGNAL + number)


def _do(duty: Callable[[str], None], name: str, deadline: float) -> None:
    def act() -> None:
        with suppress(Exception):  # storage or the server may be gone, and nobody is left to tell
            duty(name)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(max(SECONDS_FOR_EACH, deadline - time.monotonic()))


def _kill_children() -> None:
    """End the processes of pools; they hold nothing but work in progress."""
    for child in multiprocessing.active_children():
        with suppress(OSError, ValueError):
            child.kill()


def _write(descriptor: int, line: str) -> None:
    """Past Python's own buffers, whose locks the interrupted thread may hold."""
    with suppress(OSError):
        os.write(descriptor, f"{line}\n".encode())
