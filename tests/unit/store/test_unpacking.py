"""What is compressed is told by its bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.store.source_files import list_files, open_named
from eigenshift.store.unpacking import unpacking
from tests.support import hostile_files as files

CONTENT = b"one\ntwo\n" * 99
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": files.pack_zstd,
    "zip": lambda content: files.pack_zip({"lines.txt": content}),
    "gzip in zip": lambda content: files.pack_zip({"lines.txt.gz": gzip.compress(content)}),
    "plain": lambda content: content,
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz", "lines.txt.zip"])
def test_names_decide_nothing(kind: str, name: str, tmp_path: Path) -> None:
    """Any of them, under any name; the name that is given is that of the unpacked file."""
    path = tmp_path / name
    path.write_bytes(PACKED[kind](CONTENT))
    with open_named(str(path)) as (found, stream):
        assert (Path(found).name, stream.read()) == ("lines.txt", CONTENT)


def test_a_stream_without_a_way_back_is_read(tmp_path: Path) -> None:
    """A web server may not say how long a file is; a zip file is read from its end."""

    class OneWay(io.BytesIO):
        def seek(self, *_: int) -> int:
            raise ValueError("no way back")

    for kind in ("gzip", "zip"):
        stream = io.BufferedReader(OneWay(PACKED[kind](CONTENT)))
        with unpacking(stream, "http://host/lines.txt") as (_, found):
            assert found.read() == CONTENT


def test_text_that_begins_like_an_archive_is_text(tmp_path: Path) -> None:
    """Two letters are no mark."""
    path = tmp_path / "t.txt"
    path.write_bytes(b"BZh is a word here, and so is PK\n")
    with open_named(str(path)) as (_, stream):
        assert stream.read() == path.read_bytes()


def test_names_of_members_are_cut(tmp_path: Path) -> None:
    """Of many members a few are named."""
    path = tmp_path / "t.zip"
    path.write_bytes(files.pack_zip({f"{'n' * 90}{number}": b"" for number in range(9)}))
    with (
        pytest.raises(DatasetError, match=r"found 9: .* and 4 more") as caught,
        open_named(str(path)),
    ):
        pass
    assert "n" * 61 not in str(caught.value)


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    """Those below it too, but not what systems and people lay beside data."""
    files.make_folder(tmp_path / "data")
    found = [Path(file.uri).relative_to(tmp_path) for file in list_files(str(tmp_path / "data"))]
    assert list(map(str, found)) == ["data/a.csv", "data/more/b.csv.gz"]


def test_the_members_of_a_zip_file_stay_where_they_are(tmp_path: Path) -> None:
    """Nothing is unpacked onto the disk, whatever members are called."""
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.csv", CONTENT)
    with open_named(str(path)) as (name, stream):
        assert (name, stream.read()) == ("../../evil.csv", CONTENT)
    assert [item.name for item in tmp_path.parent.rglob("evil.csv")] == []
