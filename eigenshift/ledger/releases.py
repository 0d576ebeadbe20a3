"""Releases: which patch is in force for a model, and every decision that led there.

Writes `releases/<model>/<version>.json`, one new object per decision, never rewritten, and
`releases/<model>/current.json`, a pointer derived from them. Whether to release is `gate.py`'s.
"""

from __future__ import annotations

import getpass
import hashlib
import logging
import re
import socket
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from eigenshift.base.errors import ArtifactError, SettingsError
from eigenshift.base.suggestions import suggest
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.storage import Store

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
    released_by: str | None = None
    """Who decided: a name given, or user@host."""
    reason: str
    patch: ArtifactReference | None
    """The patch in force from now on; None is the unpatched model."""
    model_digest: str | None = None
    """Of the base the patch was measured against: the original model, never a patched one."""
    restores: str | None = None
    """Of a rollback: the promotion put in force again; None is the unpatched model."""
    seal: str = ""
    """sha256 of all the rest: a release that was edited shows. Empty in records made before."""

    def compute_seal(self) -> str:
        """Digest of everything but the seal."""
        return hashlib.sha256(self.model_dump_json(exclude={"seal"}).encode()).hexdigest()

    @property
    def is_sealed_wrongly(self) -> bool:
        """Whether its content is not what was released."""
        return self.seal not in ("", self.compute_seal())


def promote_patch(
    store: Store,
    model_id: str,
    run_id: str,
    patch: ArtifactReference,
    reason: str,
    *,
    model_digest: str | None = None,
    by: str | None = None,
) -> tuple[Release, bool]:
    """Put a patch in force.

    Args:
        store: Where the releases are.
        model_id: Of the model.
        run_id: The run that measured the patch.
        patch: What to put in force.
        reason: What was found.
        model_digest: Of the base it was measured against.
        by: Who decides; by default the user of this process and the host.

    Returns:
        The release in force and whether it is new; a patch already in force is not released
        twice.
    """
    current = read_current(store, model_id)
    if current is not None and current.patch == patch:
        return current, False
    decision = _Decision("promote", run_id, reason, patch, model_digest, by)
    return _record(store, model_id, decision), True


def roll_back(
    store: Store,
    model_id: str,
    version: str | None = None,
    *,
    reason: str | None = None,
    by: str | None = None,
) -> Release:
    """Put an earlier state in force again, by default the one before the current.

    Each further rollback goes one state further back; it never returns to what was just left.
    Before the first release is the unpatched model.

    Args:
        store: Where the releases are.
        model_id: Of the model.
        version: Of the history; None is the former one.
        reason: Why, for the record.
        by: Who decides; by default the user of this process and the host.

    Raises:
        SettingsError: The model has no release, not the version asked for, or is unpatched already.
    """
    history = list_releases(store, model_id)
    if not history:
        models = sorted({release.model_id for release in list_releases(store)})
        raise SettingsError(
            f"{store.root}: expected releases of model {model_id!r}, found none (models with "
            f"releases: {', '.join(models) or 'none'}).{suggest(model_id, models)} Check --model "
            "and --store."
        )
    if version is not None:
        named = next((item for item in history if item.version == version), None)
        if named is None:
            versions = [item.version for item in history]
            raise SettingsError(
                f"model {model_id!r}: expected a version among {', '.join(versions)}, found "
                f"{version!r}.{suggest(version, versions)}"
            )
        target = _find_promotion(history, named)
    else:
        target = _find_former(history)
    what = "back to the unpatched model" if target is None else f"back to {target.version}"
    decision = _Decision(
        "rollback",
        history[-1].run_id if target is None else target.run_id,
        what if reason is None else f"{reason} ({what})",
        None if target is None else target.patch,
        history[-1].model_digest if target is None else target.model_digest,
        by,
        restores=None if target is None else target.version,
    )
    return _record(store, model_id, decision)


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
        ArtifactError: A release record is damaged or was edited.
    """
    prefix = "releases" if model_id is None else f"releases/{slugify_model(model_id)}"
    found = []
    for path in store.list_paths(prefix):
        if not path.endswith(".json") or path.endswith(f"/{CURRENT_NAME}"):
            continue
        try:
            release = Release.model_validate_json(store.read_bytes(path))
        except ValidationError as error:
            raise ArtifactError(
                f"{store.uri(path)}: expected a release record, found damage. Restore it from a "
                "backup of the store, or delete it if it was never in force."
            ) from error
        if release.is_sealed_wrongly:
            raise ArtifactError(
                f"{store.uri(path)}: expected a release record as it was written, found changes. "
                "Releases are immutable. Restore it from a backup; to put another patch in force, "
                "use `eigenshift rollback` or a refresh."
            )
        if model_id in (None, release.model_id):
            found.append(release)
    return sorted(found, key=lambda release: release.version)


def slugify_model(model_id: str) -> str:
    """Folder name of a model: `org/name` becomes `org--name`.

    A name that loses something on the way (other letters, spaces, a `--` of its own) ends in a
    digest of the whole, so that no two models share a folder.
    """
    plain = model_id.strip("./").replace("/", "--")
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", plain)
    if slug == plain and slug and "--" not in model_id:
        return slug
    return f"{slug or 'model'}-{hashlib.sha256(model_id.encode()).hexdigest()[:8]}"


def name_user() -> str:
    """Who runs this process: user@host, as far as it is known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _find_promotion(history: list[Release], release: Release) -> Release | None:
    """The promotion a release put in force; None if that is the unpatched model."""
    if release.action == "promote" or release.patch is None:
        return release if release.patch is not None else None
    for other in reversed(history[: history.index(release)]):
        is_meant = release.restores is None or other.version == release.restores
        if is_meant and other.action == "promote" and other.patch == release.patch:
            return other
    return release


def _find_former(history: list[Release]) -> Release | None:
    """What was in force before the promotion that is in force now.

    Raises:
        SettingsError: The unpatched model is in force: nothing was before it.
    """
    current = _find_promotion(history, history[-1])
    if current is None:
        raise SettingsError(
            f"model {history[-1].model_id!r}: expected a patch in force, found the unpatched model "
            f"(since {history[-1].version}). Name a version with --to."
        )
    place = history.index(current)
    return _find_promotion(history[:place], history[place - 1]) if place else None


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


@dataclass(frozen=True)
class _Decision:
    """What is to be recorded."""

    action: Literal["promote", "rollback"]
    run_id: str
    reason: str
    patch: ArtifactReference | None
    model_digest: str | None
    by: str | None
    restores: str | None = None


def _record(store: Store, model_id: str, decision: _Decision) -> Release:
    previous = read_current(store, model_id)
    now = datetime.now(timezone.utc)
    release = Release(
        model_id=model_id,
        version=_name_version(now, previous),
        previous=None if previous is None else previous.version,
        run_id=decision.run_id,
        action=decision.action,
        released_at=now.isoformat(timespec="seconds"),
        released_by=decision.by or name_user(),
        reason=decision.reason,
        patch=decision.patch,
        model_digest=decision.model_digest,
        restores=decision.restores,
    )
    release = release.model_copy(update={"seal": release.compute_seal()})
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
