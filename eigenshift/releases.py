"""Releases: which patch is in force for a model, and every decision that led there.

Writes `releases/<model>/<version>.json`, one new object per decision, never rewritten, and
`releases/<model>/current.json`, a pointer derived from them. Whether to release is `gate.py`'s.
"""

from __future__ import annotations

import logging
import re
import uuid
from datetime import datetime, timedelta, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from eigenshift.artifacts import ArtifactReference
from eigenshift.errors import ArtifactError, SettingsError
from eigenshift.storage import Store

logger = logging.getLogger(__name__)

CURRENT_NAME = "current.json"
MAX_SETTLING_ROUNDS = 20


class Release(BaseModel):
    """One decision about a model."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    model_id: str
    version: str
    previous: str | None = None
    """The release in force when this one was made; two with the same were made at once."""
    run_id: str
    action: Literal["promote", "rollback"]
    released_at: str
    reason: str
    patch: ArtifactReference | None
    """The patch in force from now on; None is the unpatched model."""


def promote_patch(
    store: Store, model_id: str, run_id: str, patch: ArtifactReference, reason: str
) -> tuple[Release, bool]:
    """Put a patch in force.

    Returns:
        The release in force and whether it is new; a patch already in force is not released
        twice.
    """
    current = read_current(store, model_id)
    if current is not None and current.patch == patch:
        return current, False
    return _record(store, model_id, run_id, "promote", reason, patch), True


def roll_back(store: Store, model_id: str, version: str | None) -> Release:
    """Put an earlier state in force again, by default the one before the current.

    Before the first release is the unpatched model, so a roll-back from it puts no patch in force.

    Raises:
        SettingsError: The model has no release, or not the version asked for.
    """
    history = list_releases(store, model_id)
    if not history:
        known = ", ".join(sorted({release.model_id for release in list_releases(store)}))
        raise SettingsError(
            f"{store.root}: expected releases of model {model_id!r}, found none (models with "
            f"releases: {known or 'none'}). Check --model and --store."
        )
    if version is not None:
        target = next((item for item in history if item.version == version), None)
        if target is None:
            raise SettingsError(
                f"model {model_id!r}: expected a version among "
                f"{', '.join(item.version for item in history)}, found {version!r}."
            )
    else:
        target = _find_previous(history)
    patch = None if target is None else target.patch
    run_id = history[-1].run_id if target is None else target.run_id
    reason = "back to the unpatched model" if target is None else f"back to {target.version}"
    return _record(store, model_id, run_id, "rollback", reason, patch)


def read_current(store: Store, model_id: str) -> Release | None:
    """The release in force, None if there never was one.

    The history decides, not the pointer: a pointer lost or left behind is repaired by the next
    release and misleads nobody here.
    """
    history = list_releases(store, model_id)
    return history[-1] if history else None


def list_releases(store: Store, model_id: str | None = None) -> list[Release]:
    """All releases of one model or of all, oldest first.

    Raises:
        ArtifactError: A release record is damaged.
    """
    prefix = "releases" if model_id is None else f"releases/{slugify_model(model_id)}"
    found = []
    for path in store.list_paths(prefix):
        if not path.endswith(".json") or path.endswith(f"/{CURRENT_NAME}"):
            continue
        try:
            found.append(Release.model_validate_json(store.read_bytes(path)))
        except ValidationError as error:
            raise ArtifactError(
                f"{store.uri(path)}: expected a release record, found damage. Restore it from a "
                "backup of the store, or delete it if it was never in force."
            ) from error
    return sorted(found, key=lambda release: release.version)


def slugify_model(model_id: str) -> str:
    """Folder name of a model: `org/name` becomes `org--name`."""
    slug = model_id.strip("./").replace("/", "--")
    return re.sub(r"[^A-Za-z0-9._-]", "-", slug) or "model"


def _find_previous(history: list[Release]) -> Release | None:
    """The latest release with another patch than the one in force."""
    current = history[-1].patch
    for release in reversed(history[:-1]):
        if release.patch != current:
            return release
    return None


def settle_current(store: Store, model_id: str) -> Release | None:
    """Make the pointer agree with the history, and return the release in force.

    Two that release at once both append to the history and both settle; whoever writes the pointer
    last has read a history with both in it, or reads it again and corrects the pointer. A pointer
    left behind by a kill is corrected by the next run.
    """
    path = f"releases/{slugify_model(model_id)}/{CURRENT_NAME}"
    for _ in range(MAX_SETTLING_ROUNDS):
        newest = read_current(store, model_id)
        if newest is None:
            return None
        data = _encode(newest)
        if store.find_bytes(path) == data:
            return newest
        store.write_bytes(path, data)
    logger.warning("%s: others release at the same time; the pointer may lag", store.uri(path))
    return read_current(store, model_id)


def _record(
    store: Store,
    model_id: str,
    run_id: str,
    action: Literal["promote", "rollback"],
    reason: str,
    patch: ArtifactReference | None,
) -> Release:
    previous = read_current(store, model_id)
    now = datetime.now(timezone.utc)
    release = Release(
        model_id=model_id,
        version=_name_version(now, previous),
        previous=None if previous is None else previous.version,
        run_id=run_id,
        action=action,
        released_at=now.isoformat(timespec="seconds"),
        reason=reason,
        patch=patch,
    )
    folder = f"releases/{slugify_model(model_id)}"
    store.write_bytes(f"{folder}/{release.version}.json", _encode(release))
    newest = settle_current(store, model_id)
    if newest is not None and newest.version != release.version:
        logger.warning(
            "release %s: another release, %s, was made at the same time and is in force",
            release.version,
            newest.version,
        )
    return release


def _name_version(now: datetime, previous: Release | None) -> str:
    """A name that sorts after the previous release's, whatever this machine's clock says."""
    stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond:06d}Z"
    if previous is not None and previous.version[: len(stamp)] >= stamp:
        before = datetime.strptime(previous.version[: len(stamp)], "%Y%m%dT%H%M%S.%fZ")
        after = before + timedelta(microseconds=1)
        stamp = f"{after:%Y%m%dT%H%M%S}.{after.microsecond:06d}Z"
    return f"{stamp}-{uuid.uuid4().hex[:6]}"


def _encode(release: Release) -> bytes:
    return release.model_dump_json(indent=2).encode()
