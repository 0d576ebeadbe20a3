"""Mark what `verification.py` found damaged, so that the next run makes it again.

A damaged manifest, the manifest of an artifact with damaged files, or a damaged run record is moved
below `damaged/<time>/`: nothing is lost, and an artifact without a manifest counts as not made.
Release pointers are settled from the history. A damaged release record is left to a person: which
patch was in force cannot be computed.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

from pydantic import ValidationError

from eigenshift.base.errors import DamagedFileError
from eigenshift.ledger.releases import settle_current
from eigenshift.store.manifests import MANIFEST_NAME, Manifest
from eigenshift.store.storage import Store
from eigenshift.upkeep.verification import VerificationReport


def repair_store(store_url: str, report: VerificationReport) -> list[str]:
    """Do what can be done about a report.

    Args:
        store_url: Root URL of the store.
        report: Of this store, just now.

    Returns:
        One sentence per object changed.
    """
    store = Store(store_url)
    done = []
    for path, digest in report.damaged.items():
        data = store.find_bytes(path)
        if data is not None and hashlib.sha256(data).hexdigest() == digest:
            done.append(_set_aside(store, path, data))
        elif data is not None:
            done.append(f"{store.uri(path)}: left alone, it was written again meanwhile.")
    for model_id in dict.fromkeys(report.unsettled_models):
        release = settle_current(store, model_id)
        if release is not None:
            done.append(f"model {model_id}: the pointer names {release.version} again.")
    return done


def set_aside_damaged(store: Store, error: DamagedFileError) -> str | None:
    """Have the artifact made again whose file was found damaged while it was read.

    A store that marks content may still show the mark of the sound file, so that only the reader
    noticed.

    Returns:
        What was done, None if there is nothing to do: somebody has made it again already.
    """
    folder, _, name = error.path.rpartition("/")
    path = f"{folder}/{MANIFEST_NAME}"
    data = store.find_bytes(path)
    try:
        files = [] if data is None else Manifest.model_validate_json(data).files
    except ValidationError:  # the next run sees that by itself
        return None
    if data is None or all(file.stored_as != name for file in files):
        return None
    return _set_aside(store, path, data)


def _set_aside(store: Store, path: str, data: bytes) -> str:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    store.write_bytes(f"damaged/{stamp}/{path}", data)
    store.remove(path)
    return f"{store.uri(path)}: set aside below damaged/{stamp}/."
