"""Files that users name, by path or URL."""

from __future__ import annotations

import gzip
import uuid
from pathlib import Path

import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.store.source_files import fetch_path, list_files, open_file
from eigenshift.store.storage import Store


def test_globs_are_expanded_in_a_stable_order(tmp_path: Path) -> None:
    """Files of a glob come sorted; no match is an error."""
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).write_text(name)
    found = [Path(file.uri).name for file in list_files(str(tmp_path / "*.csv"))]
    assert found == ["a.csv", "b.csv"]
    with pytest.raises(DatasetError, match="at least one file"):
        list_files(str(tmp_path / "*.parquet"))


def test_gzip_is_opened_by_its_suffix(tmp_path: Path) -> None:
    """Compressed sources are read like plain ones."""
    path = tmp_path / "lines.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    with open_file(str(path)) as handle:
        assert handle.read() == b"one\ntwo\n"


def test_a_remote_file_that_changes_is_fetched_again() -> None:
    """Alone or in a folder, also where its size stays; an unchanged one is copied once."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.write_bytes("folder/words.txt", b"one")
    uri = store.uri("folder/words.txt")
    first = fetch_path(uri)
    assert (fetch_path(uri), first.read_bytes()) == (first, b"one")
    assert (fetch_path(store.uri("folder")) / "words.txt").read_bytes() == b"one"
    store.write_bytes("folder/words.txt", b"two")
    assert fetch_path(uri).read_bytes() == b"two"
    assert (fetch_path(store.uri("folder")) / "words.txt").read_bytes() == b"two"
    assert first.read_bytes() == b"one"
