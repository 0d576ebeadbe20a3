"""One refresh of a model at a time, by policy: the next one waits, or is cancelled.

Uses a Prefect global concurrency limit per model, made on first use. Its slot is leased and renewed
by the holder, so a holder that is killed loses it after a minute. Where Prefect runs embedded in
one command there is nobody to ask, and the policy does not apply: the store keeps two refreshes
apart by itself, at the price of doing the same work twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from httpx import HTTPStatusError
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings

from eigenshift.base.errors import EigenShiftError
from eigenshift.ledger.presence import list_present
from eigenshift.ledger.releases import slugify_model
from eigenshift.settings import Overlap, RefreshSettings
from eigenshift.store.storage import Store
from flows.stopping import on_stop

logger = logging.getLogger("eigenshift.run")

LEASE_SECONDS = 60.0  # the least that Prefect takes
FIRST_WAIT_SECONDS = 2.0
ASK_AGAIN_SECONDS = 120.0
IGNORE_LIMIT_AFTER_SECONDS = 900.0
CONFLICT = 409


class OverlapError(EigenShiftError):
    """Another refresh of the same model is running, and the policy says not to wait."""


@contextmanager
def one_refresh_at_a_time(settings: RefreshSettings) -> Iterator[None]:
    """Hold the model's slot while the block runs, or wait for it, or give up.

    Raises:
        OverlapError: Another refresh holds it and the policy is "cancel".
    """
    policy = settings.execution.overlap
    if policy is Overlap.allow or not has_server():
        yield
        return
    name = f"eigenshift-refresh-{slugify_model(settings.model.model_id)}"
    _create_limit(name)
    waiting_since = time.monotonic()
    patience = FIRST_WAIT_SECONDS
    while True:
        slot = concurrency(
            name,
            occupy=1,
            strict=True,
            timeout_seconds=patience,
            lease_duration=LEASE_SECONDS,
            raise_on_lease_renewal_failure=False,
        )
        try:
            slot.__enter__()
            break
        except TimeoutError:
            if policy is Overlap.cancel:
                raise OverlapError(
                    f"model {settings.model.model_id}: expected no other refresh of it, found one "
                    "that is running. By `execution.overlap: cancel` this one does nothing; "
                    "choose `queue` to wait for the other to end."
                ) from None
        if _is_abandoned(settings, time.monotonic() - waiting_since):
            logger.warning("limit %s is taken, but nobody is at work; going on", name)
            yield
            return
        logger.info("another refresh of %s is running; waiting", settings.model.model_id)
        patience = ASK_AGAIN_SECONDS
    try:
        with on_stop(lambda _: _give_back(slot)):
            yield
    finally:
        _give_back(slot)


def _give_back(slot: AbstractContextManager[Any]) -> None:
    slot.__exit__(None, None, None)


def has_server() -> bool:
    """Whether runs share a Prefect server, rather than one embedded in this command."""
    return bool(get_current_settings().api.url)


def _is_abandoned(settings: RefreshSettings, waited_seconds: float) -> bool:
    """Whether the slot leaked (a restarted server forgets its leases): nobody is at work."""
    if waited_seconds < IGNORE_LIMIT_AFTER_SECONDS:
        return False
    return not list_present(Store(settings.store), "run")


def _create_limit(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.upsert_global_concurrency_limit_by_name(name, 1)
        except ObjectAlreadyExists:
            return  # another run made it at this moment
        except HTTPStatusError as error:
            if error.response.status_code != CONFLICT:
                raise
