"""Inputs: what a stage reads beside its settings, as references that enter its fingerprint.

An input is an artifact, which stands for what made it; a file of one, which stands for its content;
or something outside the store, which stands for its own digest. Nothing is read here but that
digest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from eigenshift.stages.keys import Reads
from eigenshift.stages.tables import Table
from eigenshift.store.manifests import ArtifactReference, FileReference


@dataclass(frozen=True)
class Of:
    """What an input is: the edge from the stage that makes it.

    Attributes:
        kinds: Of the artifact it is, or is a file of; several where any will do.
        table: Of the file it is, or that is read of the artifact.
        as_made: A file that stands for what made it, as its artifact does, not for its content.
        by_name: Of inputs by name, their references enter the fingerprint in the order of the
            names, not in the order given.
        is_optional: Read by some of the peers that `compare` builds, by nothing a refresh builds.
    """

    kinds: tuple[str, ...]
    table: Table | None = None
    as_made: bool = False
    by_name: bool = False
    is_optional: bool = False


class Outside(BaseModel):
    """Something outside the store that a stage reads; identified when the stage begins."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    kind: ClassVar[str]
    _known: ArtifactReference | None = PrivateAttr(None)

    @abstractmethod
    def identify(self) -> str:
        """Digest of its content."""

    def refer(self) -> ArtifactReference:
        """What stands for it among the inputs, as it was when this was first asked."""
        if self._known is None:
            self._known = ArtifactReference(kind=self.kind, fingerprint=self.identify())
        return self._known


class Inputs(BaseModel):
    """Base of all inputs: frozen; fields say by `Of` what they are.

    Their order is that of the references in the fingerprint. Of what lies outside the store,
    `Reads` says which settings name it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def list_references(self) -> list[ArtifactReference]:
        """All references, in order; what is None is left out."""
        return [
            reference
            for name, field in type(self).model_fields.items()
            for reference in _flatten(getattr(self, name), _find_edge(field.metadata))
        ]

    @classmethod
    def list_paths(cls) -> Iterator[str]:
        """Every place in the settings that says what lies outside the store."""
        for field in cls.model_fields.values():
            for item in field.metadata:
                if isinstance(item, Reads):
                    yield from item.fields or (item.path,)
            for part in _list_types(field.annotation):
                if issubclass(part, Inputs):
                    yield from part.list_paths()

    @classmethod
    def list_edges(cls) -> Iterator[tuple[str, Of | type[Outside]]]:
        """Name of each input and what it is, those of nested inputs included."""
        for name, field in cls.model_fields.items():
            edge = _find_edge(field.metadata)
            if edge is not None:
                yield name, edge
            for part in _list_types(field.annotation):
                if issubclass(part, Outside):
                    yield name, part
                elif issubclass(part, Inputs):
                    yield from part.list_edges()


def _find_edge(metadata: Sequence[Any]) -> Of | None:
    return next((item for item in metadata if isinstance(item, Of)), None)


def _list_types(annotation: Any) -> Iterator[type]:
    """The classes in an annotation, however they are nested."""
    if isinstance(annotation, type):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _list_types(part)


def _flatten(value: Any, edge: Of | None) -> Iterator[ArtifactReference]:
    if value is None:
        return
    if isinstance(value, Outside):
        yield value.refer()
    elif isinstance(value, Inputs):
        yield from value.list_references()
    elif isinstance(value, FileReference) and edge is not None and edge.as_made:
        yield value.artifact
    elif isinstance(value, ArtifactReference):
        yield value
    elif isinstance(value, Mapping):
        names = sorted(value) if edge is not None and edge.by_name else list(value)
        for name in names:
            yield from _flatten(value[name], edge)
    else:
        for item in value:
            yield from _flatten(item, edge)
