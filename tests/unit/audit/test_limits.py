"""What stops a query: its time, and Ctrl-C, whatever DuckDB is busy with."""

from __future__ import annotations

import os
import signal
import threading
import time

import duckdb
import pytest

from eigenshift.audit.limits import AuditLimits, Deadline
from eigenshift.audit.sessions import AuditSession

ENDLESS = "SELECT sum(hash(a.range, b.range)) FROM range(1000000) a, range(1000000) b"


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_query_long_before_its_time_is_over(tmp_path, threads: int) -> None:
    """Also where the thread that waits does the work itself; the next query is answered."""
    limits = AuditLimits(seconds=60, threads=threads)
    before = signal.getsignal(signal.SIGINT)
    session = AuditSession(str(tmp_path), limits)
    for _ in range(3):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            session.query(ENDLESS)
        assert time.monotonic() - started < limits.seconds / 2
        assert session.query("SELECT 1 AS one")["one"].to_pylist() == [1]
    assert signal.getsignal(signal.SIGINT) is before
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    assert found == -1


def test_a_query_may_be_asked_in_any_thread() -> None:
    """Only the main thread may watch for signals; the clock runs in all."""
    deadline, seen = Deadline(0.2), []

    def ask() -> None:
        connection = duckdb.connect()
        try:
            with deadline.interrupting(connection):
                connection.execute(ENDLESS).fetchall()
        except duckdb.InterruptException:
            seen.append(deadline.is_over)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    assert seen == [True]
    assert not deadline.is_stopped
