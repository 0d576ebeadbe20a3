"""Compressed files, told by their first bytes: what a file is called decides nothing.

Reads a stream; writes nothing, but for a zip file from a stream that cannot be searched, of which
a temporary copy is made. A zip file stands for its one file; of several none is chosen. What the
unpacked bytes mean is the readers' (`datasets/`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa

from eigenshift.base.errors import DatasetError
from eigenshift.store.local_files import READ_BLOCK_BYTES
from eigenshift.store.scratch import scratch_folder

HEAD_BYTES = 512
MAX_LAYERS = 3
"""A gzip file in a zip file is met; what is packed more often is no file of texts."""
OPENERS: dict[str, Callable[[Any], Any]] = {
    r"\x1f\x8b\x08": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb"),
    r"BZh[1-9](1AY&SY|\x17rE8P\x90)": bz2.BZ2File,
    r"\xfd7zXZ\x00": lzma.LZMAFile,
    r"\x28\xb5\x2f\xfd": lambda stream: _open_zstd(stream),
}
SUFFIXES = {
    ".gz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lzma": "lzma",
    ".zst": "zstd",
    ".zip": "zip",
}
"""What the endings of names promise."""
ZIP, EMPTY_ZIP = b"PK\x03\x04", b"PK\x05\x06"
SYSTEM_NAMES = frozenset(
    {"__MACOSX", "Thumbs.db", "desktop.ini", "_SUCCESS", "_metadata", "_common_metadata"}
)
MAX_NAMES = 5
MAX_NAME_CHARACTERS = 60
TEXT_CONTROLS = frozenset(b"\t\n\v\f\r\x1b")


@contextmanager
def unpacking(stream: Any, uri: str) -> Iterator[tuple[str, Any]]:
    """What a stream holds once nothing of it is compressed.

    Args:
        stream: Bytes as stored, with `peek`.
        uri: Where they are from, for errors and for the name.

    Yields:
        The name of the unpacked file, without endings that spoke of compression, and its bytes, as
        a stream with `peek`.

    Raises:
        DatasetError: A zip file holds no file or several, is an office document or encrypted, or
            the name speaks of a compression that the bytes are not.
    """
    name = uri
    with ExitStack() as open_streams:
        for _ in range(MAX_LAYERS):
            head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
            if head.startswith((ZIP, EMPTY_ZIP)):
                name, stream = _open_zip(stream, uri, open_streams)
                continue
            opener = next(
                (found for magic, found in OPENERS.items() if re.match(magic.encode(), head)), None
            )
            if opener is None:
                _require_text(head, name, uri)
                break
            name = _strip_suffix(name)
            stream = open_streams.enter_context(_with_peek(opener(stream)))
        yield _strip_suffix(name), stream


def _with_peek(stream: Any) -> Any:
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream, READ_BLOCK_BYTES)


def _open_zstd(stream: Any) -> Any:
    """By pyarrow, which has it everywhere; Python itself from 3.14 on."""
    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")


def _strip_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name


def _require_text(head: bytes, name: str, uri: str) -> None:
    """A file that is called compressed and is not may be plain text, but nothing else."""
    promised = SUFFIXES.get(PurePosixPath(name).suffix.lower())
    if promised is None or not (set(head) & set(range(32)) - TEXT_CONTROLS):
        return
    raise DatasetError(
        f"{uri}: expected a {promised} file, as its name says, found other bytes. It is damaged, "
        "or was cut at its beginning. Fetch it again, or give it the name of what it is."
    )


def _open_zip(stream: Any, uri: str, open_streams: ExitStack) -> tuple[str, Any]:
    """The one file in a zip file, and its name."""
    if not is_searchable(stream):
        folder = scratch_folder()
        copy = open_streams.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        shutil.copyfileobj(stream, copy)
        stream = copy
    try:
        archive = open_streams.enter_context(zipfile.ZipFile(stream))
        member = _choose_member(archive, uri)
        opened = archive.open(member)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DatasetError(
            f"{uri}: expected a zip file, found one that cannot be read: {error}. It was probably "
            "cut short in transfer, or packed in a way of its own. Fetch it again, or pack it anew."
        ) from error
    return member.filename, open_streams.enter_context(cast("Any", opened))


def is_searchable(stream: Any) -> bool:
    """Whether a stream can go back; one from a web server may only say that it can."""
    try:
        stream.seek(0, io.SEEK_END)
        stream.seek(0)
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _choose_member(archive: zipfile.ZipFile, uri: str) -> zipfile.ZipInfo:
    members = [item for item in archive.infolist() if not _is_beside(item)]
    names = [item.filename for item in members]
    if "[Content_Types].xml" in names or "mimetype" in names:
        raise DatasetError(
            f"{uri}: expected a table of text, found an office document (a workbook of Excel or "
            "the like). Save the sheet as CSV in UTF-8, or as Parquet, and name that in `uri`."
        )
    if len(members) != 1:
        found = f"{len(members)}: {_show_names(names)}" if members else "none"
        raise DatasetError(
            f"{uri}: expected a zip file with one file in it, found {found}. Which of them is "
            "meant is not guessed. Unpack it, and name the file, a glob or the folder in `uri`."
        )
    (member,) = members
    if member.flag_bits & 1:
        raise DatasetError(
            f"{uri}: expected a zip file without a password, found an encrypted one. Unpack it, "
            "and name the unpacked file in `uri`."
        )
    return member


def _is_beside(item: zipfile.ZipInfo) -> bool:
    """Folders, and what macOS and Windows lay beside files."""
    parts = PurePosixPath(item.filename).parts
    return item.is_dir() or any(map(is_of_system, parts))


def is_of_system(name: str) -> bool:
    """Whether a file or folder is a system's or a tool's own, and holds no data."""
    return (name.startswith(".") and name.strip(".") != "") or name in SYSTEM_NAMES


def _show_names(names: list[str]) -> str:
    shown = [name[:MAX_NAME_CHARACTERS] for name in names[:MAX_NAMES]]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(shown)}{more}"
