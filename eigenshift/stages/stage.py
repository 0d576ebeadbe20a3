"""The declaration of a stage: everything about it but the work itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, TypeVar

from eigenshift.settings import ExecutionSettings, ModelSettings
from eigenshift.stages.inputs import Inputs
from eigenshift.stages.keys import Key
from eigenshift.stages.tables import Table
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import FileReference

I = TypeVar("I", bound=Inputs)  # noqa: E741 - the stage's inputs
K = TypeVar("K", bound=Key)


@dataclass(frozen=True)
class Place:
    """Where a stage works and how fast: nothing here changes what it finds, or has a fingerprint.

    Attributes:
        store_url: Root URL of the store.
        model: Where the model under study lies. Which one it is, and its precision, stands in the
            `model` artifact that every stage which runs it depends on.
        execution: Device, batch sizes, memory.
    """

    store_url: str
    model: ModelSettings
    execution: ExecutionSettings

    def open(self) -> Bench:
        """Open the store, for one piece of work."""
        return Bench(ArtifactStore(self.store_url), self.model, self.execution)


@dataclass(frozen=True)
class Bench:
    """A place with its store opened: what work is given beside its inputs and its key."""

    artifacts: ArtifactStore
    model: ModelSettings
    execution: ExecutionSettings


@dataclass(frozen=True)
class Stage(Generic[I, K]):
    """A stage says once what it is.

    Attributes:
        name: What it does, as run records and screens show it.
        kind: Of the artifacts it makes.
        version: Raised by hand when the same inputs and key would give another result.
        inputs: What it reads beside settings.
        key: The settings it reads.
        files: What it writes: tables, and names of other files.
        work: Where the function that does it lies, "module:name"; imported when there is work to
            do, since most of them need torch. Takes the inputs, the key, the bench and a workspace;
            of a stage that makes several artifacts in one pass, the inputs, keys and workspaces of
            those that are missing, by name.
        runs_model: It runs a model, and so may claim a GPU.
        pieces_per_task: So many pieces of its work, each short, are one task's, one after another.
    """

    name: str
    kind: str
    version: int
    inputs: type[I]
    key: type[K]
    files: tuple[Table | str, ...] = field(repr=False)
    work: str = field(repr=False)
    runs_model: bool = False
    pieces_per_task: int = 1

    @property
    def tables(self) -> tuple[Table, ...]:
        """Its tables among the files."""
        return tuple(item for item in self.files if isinstance(item, Table))

    @property
    def module(self) -> str:
        """Where its work is."""
        return self.work.partition(":")[0]

    @property
    def room(self) -> str:
        """The room its work is in."""
        return self.module.split(".")[1]

    def load_work(self) -> Callable[..., Any]:
        """The function that does it."""
        module, _, name = self.work.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found

    def find_table(self, file: str) -> Table | None:
        """The table a file of this name holds, None if it is none of its tables."""
        return next((table for table in self.tables if table.matches(file)), None)

    def count_rows(self, files: Sequence[FileReference]) -> int:
        """Rows of results among an artifact's files; tables that keep the books do not count."""
        results = [table for table in self.tables if not table.keeps_books]
        return sum(
            item.rows or 0 for item in files if any(table.matches(item.file) for table in results)
        )

    def declares(self, file: str) -> bool:
        """Whether it writes a file of this name."""
        return file in self.files or self.find_table(file) is not None
