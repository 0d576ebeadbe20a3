"""Mark what `verification.py` found damaged, so that the next run makes it again.

A damaged manifest, the manifest of an artifact with damaged files, or a damaged run record is moved
below `damaged/<time>/`: nothing is lost, and an artifact without a manifest counts as not made.
Release pointers are settled from the history. A damaged release record is left to a person: which
patch was in force cannot be computed.
"""

from __future__ import annotations

from datetime import datetime, timezone

from eigenshift.releases import settle_current
from eigenshift.storage import Store
from eigenshift.verification import Verdict


def repair_store(store_url: str, verdict: Verdict) -> list[str]:
    """Do what can be done about a verdict.

    Args:
        store_url: Root URL of the store.
        verdict: Of this store, just now.

    Returns:
        One sentence per object changed.
    """
    store = Store(store_url)
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    done = []
    for path in dict.fromkeys(verdict.damaged):
        data = store.find_bytes(path)
        if data is None:
            continue
        store.write_bytes(f"damaged/{stamp}/{path}", data)
        store.remove(path)
        done.append(f"{store.uri(path)}: set aside below damaged/{stamp}/.")
    for model_id in dict.fromkeys(verdict.unsettled_models):
        release = settle_current(store, model_id)
        if release is not None:
            done.append(f"model {model_id}: the pointer names {release.version} again.")
    return done
