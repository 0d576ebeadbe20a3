"""Whether a store is one: a mistyped URL is told, not answered with empty tables.

Lists a store's records and artifacts; reads and writes none. What they say is `runs.py`'s,
`releases.py`'s and `store/manifests.py`'s.
"""

from __future__ import annotations

from eigenshift.base.errors import SettingsError
from eigenshift.store.manifests import MANIFEST_NAME
from eigenshift.store.storage import Store

RECORDS = ("runs", "releases")
"""Folders of JSON records; the first run writes its own before anything else."""


def require_holdings(store: Store) -> None:
    """Refuse a place where no run, release or artifact lies.

    Raises:
        SettingsError: Nothing of ours is there.
        StorageError: It cannot be listed.
    """
    records = (path for folder in RECORDS for path in store.list_paths(folder))
    if any(path.endswith(".json") for path in records):
        return
    if store.list_named("artifacts", MANIFEST_NAME):
        return
    raise SettingsError(
        f"{store.root}: expected a store of EigenShift, found no runs, releases or artifacts "
        "there. Check --store; a store is made by its first run, for instance `eigenshift refresh`."
    )
