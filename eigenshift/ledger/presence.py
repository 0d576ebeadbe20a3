"""Who is at work on a store right now: runs, and a garbage collection.

Writes `present/<kind>-<name>.json` when somebody begins, again every few seconds, and deletes it at
the end; and `present/clock`, to read the store's clock. One that has not been renewed for
`STALE_AFTER_SECONDS` was killed and counts no more, so nobody waits for the dead; that is judged by
the store's clock alone, where it has one, since those of the machines may differ. No lock is
involved: each side announces itself *before* it looks for the other, so of two that begin at once
at least one sees the other, and a collection gives way.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import BaseModel, ValidationError

from eigenshift.base.errors import StorageError
from eigenshift.store.filesystems import logging_faults
from eigenshift.store.storage import Store

logger = logging.getLogger(__name__)

FOLDER = "present"
CLOCK = f"{FOLDER}/clock"
"""Put whenever somebody asks for the time, and left there."""
RENEW_EVERY_SECONDS = 20.0
STALE_AFTER_SECONDS = 600.0
LOOK_EVERY_SECONDS = 1.0

Kind = Literal["run", "collection"]


class Presence(BaseModel):
    """One process at work on the store.

    Times are seconds since 1970 by its own clock: for people, and for stores without one.
    """

    kind: Kind
    name: str
    host: str
    process_id: int
    began_at: float
    renewed_at: float

    @property
    def path(self) -> str:
        """Where it is written."""
        return f"{FOLDER}/{self.kind}-{self.name}.json"


@contextmanager
def present(store: Store, kind: Kind, name: str | None = None) -> Iterator[Presence]:
    """Announce somebody and keep the announcement fresh until the block ends.

    Args:
        store: Where.
        kind: Of work.
        name: The run's id; made up if there is none.
    """
    now = time.time()
    presence = Presence(
        kind=kind,
        name=name or uuid.uuid4().hex[:12],
        host=platform.node(),
        process_id=os.getpid(),
        began_at=now,
        renewed_at=now,
    )
    _write(store, presence)
    ended = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(store, presence, ended), name="presence", daemon=True
    )
    thread.start()
    try:
        yield presence
    finally:
        ended.set()
        thread.join()
        with logging_faults("an announcement could not be removed; it counts as dead later"):
            store.remove(presence.path)


def list_present(store: Store, kind: Kind) -> list[Presence]:
    """Those of a kind who are alive."""
    return [found for found, age in _read_all(store, kind) if age < STALE_AFTER_SECONDS]


def remove_dead(store: Store, kind: Kind) -> list[Presence]:
    """Delete and return the announcements of those who were killed."""
    dead = [found for found, age in _read_all(store, kind) if age >= STALE_AFTER_SECONDS]
    for presence in dead:
        store.remove(presence.path)
    return dead


def wait_for_collections(store: Store) -> None:
    """Wait until no garbage collection is at work; call it after announcing a run."""
    while found := list_present(store, "collection"):
        logger.info("waiting for a garbage collection on %s to end", found[0].host)
        time.sleep(LOOK_EVERY_SECONDS)


def _renew(store: Store, presence: Presence, ended: threading.Event) -> None:
    while not ended.wait(RENEW_EVERY_SECONDS):
        presence.renewed_at = time.time()
        try:
            _write(store, presence)
        except (StorageError, OSError) as error:  # it is tried again soon
            logger.warning("an announcement could not be renewed: %s", error)


def _write(store: Store, presence: Presence) -> None:
    store.write_bytes(presence.path, presence.model_dump_json().encode())


def _read_all(store: Store, kind: Kind) -> list[tuple[Presence, float]]:
    """Announcements of a kind, with the seconds since each was renewed."""
    prefix = f"{FOLDER}/{kind}-"
    states = {
        path: state for path, state in store.list_states(FOLDER).items() if path.startswith(prefix)
    }
    now = _read_clock(store) if states else None
    found = []
    for path, state in states.items():
        data = store.find_bytes(path)
        if data is None:  # ended meanwhile
            continue
        try:
            presence = Presence.model_validate_json(data)
        except ValidationError:
            logger.warning("%s: not an announcement, ignored", store.uri(path))
            continue
        if now is None or state.modified_at is None:
            age = time.time() - presence.renewed_at
        else:
            age = now - state.modified_at
        found.append((presence, age))
    return found


def _read_clock(store: Store) -> float | None:
    """What time it is by the store's own clock: when it says that it put an object just now."""
    store.write_bytes(CLOCK, b"")
    state = store.inspect(CLOCK)
    return None if state is None else state.modified_at
