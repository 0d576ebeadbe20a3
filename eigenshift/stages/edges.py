"""What several rooms read, said once: the kind of an artifact, and the table that is read of it.

An edge that one room alone has stands in that room's `stages.py`.
"""

from __future__ import annotations

from typing import Annotated

from eigenshift.stages import tables
from eigenshift.stages.inputs import Of
from eigenshift.store.manifests import ArtifactReference, FileReference

Model = Annotated[ArtifactReference, Of(("model",))]
Decomposition = Annotated[ArtifactReference, Of(("decomposition",))]
HeadStates = Annotated[ArtifactReference, Of(("head_states",), tables.HEAD_STATES)]
HarmlessTexts = Annotated[ArtifactReference, Of(("harmless_texts",), tables.HARMLESS_TEXTS)]
StudyTexts = Annotated[
    tuple[ArtifactReference, ...], Of(("continuations", "labelled_text"), tables.CONTINUATIONS)
]
"""What the base said to the selection prompts, or labelled texts in that form."""
StudyScores = Annotated[
    tuple[ArtifactReference, ...], Of(("scores", "labelled_text"), tables.SCORES)
]
SampleFile = Annotated[FileReference, Of(("samples",), tables.SAMPLES)]
SampleFiles = Annotated[tuple[FileReference, ...], Of(("samples",), tables.SAMPLES)]
