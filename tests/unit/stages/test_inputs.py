"""What `eigenshift.stages.inputs` promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from eigenshift.stages import tables
from eigenshift.stages.inputs import Inputs, Of, Outside
from eigenshift.stages.keys import Reads
from eigenshift.store.manifests import ArtifactReference, FileReference, InputRecord


def refer(name: str) -> ArtifactReference:
    """An artifact of this name."""
    return ArtifactReference(kind="scores", fingerprint=name)


def refer_to_file(name: str) -> FileReference:
    """A file of an artifact of this name."""
    return FileReference(
        kind="scores",
        fingerprint=name,
        file="scores.parquet",
        stored_as="x-scores.parquet",
        bytes=1,
        rows=1,
        sha256=f"content of {name}",
    )


class Weights(Outside):
    """Something outside."""

    kind: ClassVar[str] = "weights"
    path: str

    def identify(self) -> str:
        """Its name will do."""
        return f"digest of {self.path}"


class Part(Inputs):
    """Inputs inside others."""

    first: Annotated[ArtifactReference, Of(("scores",), tables.SCORES)]


class Whole(Inputs):
    """All there may be."""

    weights: Annotated[Weights, Reads("model", fields=("model.id",))]
    part: Part
    absent: Annotated[ArtifactReference | None, Of(("patch",))] = None
    as_made: Annotated[FileReference, Of(("scores",), tables.SCORES, as_made=True)]
    content: Annotated[tuple[FileReference, ...], Of(("scores",), tables.SCORES)]
    in_order: Annotated[Mapping[str, ArtifactReference | None], Of(("patch",))]
    by_name: Annotated[
        Mapping[str, tuple[ArtifactReference, ...]], Of(("scores",), tables.SCORES, by_name=True)
    ]


WHOLE = Whole(
    weights=Weights(path="here"),
    part=Part(first=refer("a")),
    as_made=refer_to_file("b"),
    content=(refer_to_file("c"),),
    in_order={"z": refer("d"), "base": None, "a": refer("e")},
    by_name={"z": (refer("f"),), "a": (refer("g"), refer("h"))},
)


def test_references_are_in_the_order_of_the_fields() -> None:
    """Mappings as given, or by name; what is absent is left out."""
    identities = [InputRecord.of(item).identity for item in WHOLE.list_references()]
    assert identities == ["digest of here", "a", "b", "content of c", "d", "e", "g", "h", "f"]


def test_edges_name_what_each_input_is() -> None:
    """Those of nested inputs too; outside the store by their class."""
    edges = dict(Whole.list_edges())
    assert edges["weights"] is Weights
    assert edges["first"] == Of(("scores",), tables.SCORES)
    assert list(edges) == [
        "weights",
        "first",
        "absent",
        "as_made",
        "content",
        "in_order",
        "by_name",
    ]
    assert list(Whole.list_paths()) == ["model.id"]
