"""A refresh killed while it holds its model's slot does not block the next one for ever.

Needs a real Prefect server: the services that take back expired leases do not run in an embedded
one. A lease lasts a minute, so this is a slow test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from tests.support.killed_work import run_until, start
from tests.support.prefect_server import prefect_server_process
from tests.support.refresh_process import prepare_refreshes, run_refresh_at

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SECONDS_TO_WAIT = 240.0


def test_a_killed_holder_frees_its_slot(
    load_small: Callable[..., RefreshSettings], tmp_path: Path
) -> None:
    """The next refresh queues, gets the slot when the lease has run out, and finishes."""
    settings = load_small("generation.n_samples=60")
    context: Any = prepare_refreshes()
    store = ArtifactStore(settings.store).store
    with prefect_server_process(tmp_path / "prefect") as url:
        holder = start(context, run_refresh_at, [url, settings])
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while not list_run_ids(store):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        holder.kill()
        holder.join()
        killed_at = time.monotonic()
        small = settings.model_copy(
            update={"generation": settings.generation.model_copy(update={"n_samples": 4})}
        )
        assert run_until(context, run_refresh_at, [url, small], SECONDS_TO_WAIT)
        waited = time.monotonic() - killed_at
    last = read_run(store, list_run_ids(store)[-1])
    assert last.status in ("promoted", "held")
    assert waited > 20  # it did queue
