"""`origin.json` of a fetched folder: what it was made from, and a digest of every other file.

Written last. By it the same folder is known again, and a damaged or edited one told from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eigenshift.base.errors import SettingsError
from eigenshift.fetching.catalogue import Package
from eigenshift.store.local_files import digest_local_file

ORIGIN_NAME = "origin.json"


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Record what a folder was made from, beside the digests of what is in it."""
    written = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = {path.name: digest_local_file(path) for path in written}
    write_json(folder / ORIGIN_NAME, {**origin, "files": files})


def holds(folder: Path, package: Package, expected: Mapping[str, Any]) -> bool:
    """Whether a folder is this already, whole and unchanged.

    Args:
        folder: Need not be there.
        package: What it should be from.
        expected: What decides about its files, as `write_origin` was given it.

    Raises:
        SettingsError: It was made from something else, or has changed since.
    """
    try:
        origin = json.loads((folder / ORIGIN_NAME).read_text(encoding="utf-8"))
        files = dict(origin.pop("files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (
            False  # a folder with content but no such record is refused where it would be written
        )
    remedy = "Remove the folder, or choose another --out."
    if origin != expected:
        different = ", ".join(
            f"{key} {origin.get(key)!r}" for key in expected if origin.get(key) != expected[key]
        )
        raise SettingsError(
            f"{folder}: expected {package.name} from {package.requirement} (conversion "
            f"{expected['conversion']}), found a folder made from something else ({different}). "
            f"{remedy}"
        )
    _check_files(folder, files, remedy)
    return True


def _check_files(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    for name, digest in files.items():
        path = folder / name
        found = digest_local_file(path) if path.is_file() else None
        if found != digest:
            state = "no such file" if found is None else f"sha256 {found}"
            raise SettingsError(
                f"{path}: expected the file as it was written (sha256 {digest}), found {state}. It "
                f"was changed or damaged since. {remedy}"
            )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON for people to read too."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
