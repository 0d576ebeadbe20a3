"""A folder that a command writes for its user, of an export or a model: whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eigenshift.base.errors import SettingsError


@contextmanager
def writing_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `out` if all goes well, and is removed if not.

    Raises:
        SettingsError: `out` has content, or cannot be written (a full disk, permissions).
    """
    check_vacant(out)
    target = out.absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError as error:
        raise SettingsError(
            f"{out}: expected to write a folder, found: {error.strerror or error}. Check the path, "
            "its permissions and the free space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_vacant(out: Path) -> None:
    """Refuse a folder that is somebody's already; for those who have long work to do before.

    Raises:
        SettingsError: `out` has content, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(
            f"{out}: expected a new or empty folder, found one with content (or a file). Choose "
            "another --out."
        )


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuse before writing what will not fit.

    Raises:
        SettingsError: There is less space.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise SettingsError(
            f"{folder.parent}: expected {n_bytes / 1e9:.1f} GB of free space, found "
            f"{free / 1e9:.1f} GB. Free some, or choose another --out."
        )
