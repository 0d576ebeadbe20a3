"""A folder for one step: the library's functions write files of an artifact, here soon gone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift.store.scratch import scratch_folder
from eigenshift.store.workspace import Workspace

PREFIX = "api-"


def make_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed with the object, or with this process."""
    return tempfile.TemporaryDirectory(dir=scratch_folder(), prefix=PREFIX)


@contextmanager
def work_in_scratch() -> Iterator[Workspace]:
    """A workspace as a stage gets it, for as long as the block lasts."""
    with make_folder() as folder:
        yield Workspace(Path(folder))


def read_table(workspace: Workspace, file: str) -> pa.Table:
    """A table that a step wrote; the file may be gone then.

    Args:
        workspace: Where it is.
        file: Its name, or a pattern: shards are put together in their order.
    """
    paths = sorted(workspace.folder.glob(file))
    return pa.concat_tables(pq.read_table(path, memory_map=False) for path in paths)
