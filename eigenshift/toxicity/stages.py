"""Stages of this room: continuations scored, and the words that make them toxic."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from eigenshift.settings import PositionSource, RefreshSettings, ScorerSettings
from eigenshift.stages import tables
from eigenshift.stages.inputs import Inputs, Of, Outside
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference

BOUNDS = frozenset({"toxic_threshold", "max_unscored_share"})
"""Settings of a scorer that say what is made of the scores."""
NOT_IDENTIFYING = BOUNDS | {"name"}
"""Those that do not decide the scores."""


def name_scorer_fields(section: str) -> tuple[str, ...]:
    """Settings that decide the scores, of one section."""
    names = (name for name in ScorerSettings.model_fields if name not in NOT_IDENTIFYING)
    return tuple(f"{section}.{name}" for name in names)


def name_scorer_bounds(section: str) -> tuple[str, ...]:
    """Settings that say what is made of the scores, and the name, of one section."""
    return tuple(f"{section}.{name}" for name in sorted(NOT_IDENTIFYING))


class Classifier(Outside):
    """A scorer's files and how they are read, wherever they lie; its name is for messages."""

    kind: ClassVar[str] = "classifier"
    settings: ScorerSettings

    @classmethod
    def of(cls, settings: ScorerSettings) -> Self:
        """Leave out the bounds, so that nobody reads them from here."""
        document = settings.model_dump(exclude={*BOUNDS, "for_languages"})
        document["for_languages"] = [
            part.model_dump(exclude=set(BOUNDS)) for part in settings.for_languages
        ]
        return cls(settings=ScorerSettings.model_validate(document))

    def identify(self) -> str:
        """Digest of all that decides the scores."""
        from eigenshift.toxicity.scorers.identity import identify_scorer

        return identify_scorer(self.settings)


class WordFile(Outside):
    """A file of words."""

    kind: ClassVar[str] = "lexicon"
    uri: str

    def identify(self) -> str:
        """Digest of the file."""
        from eigenshift.store.source_files import digest_file
        from eigenshift.toxicity.word_lists import require_word_file

        require_word_file(self.uri, "components.lexicon")
        return digest_file(self.uri)


class CaseFile(Outside):
    """A file of functional cases."""

    kind: ClassVar[str] = "cases"
    uri: str

    def identify(self) -> str:
        """Digest of the file."""
        from eigenshift.store.source_files import digest_file
        from eigenshift.toxicity.functional_cases import require_case_file

        require_case_file(self.uri)
        return digest_file(self.uri)


class ScoringInputs(Inputs):
    """The scorer that decides, and one shard of continuations."""

    scorer: Annotated[Classifier, Reads("scorer", fields=name_scorer_fields("scorer"))]
    continuations: Annotated[ArtifactReference, Of(("continuations",), tables.CONTINUATIONS)]


class ScoringKey(Key):
    """What the scorer is called in the table."""

    scorer: Annotated[str, Reads("scorer.name")]


SCORE_CONTINUATIONS = Stage(
    name="score_continuations",
    kind="scores",
    version=1,
    inputs=ScoringInputs,
    key=ScoringKey,
    files=(tables.SCORES,),
    work="eigenshift.toxicity.scoring:carry_out",
    runs_model=True,
)


class LongScoringInputs(ScoringInputs):
    """The scorer that decides, and one shard of long continuations."""

    continuations: Annotated[ArtifactReference, Of(("long_continuations",), tables.CONTINUATIONS)]


SCORE_LONG = Stage(
    name="score_long_continuations",
    kind="long_scores",
    version=1,
    inputs=LongScoringInputs,
    key=ScoringKey,
    files=(tables.SCORES,),
    work="eigenshift.toxicity.scoring:carry_out",
    runs_model=True,
)


class FurtherScoringInputs(ScoringInputs):
    """A further scorer, and one shard of continuations."""

    scorer: Annotated[
        Classifier, Reads("further_scorers", fields=name_scorer_fields("further_scorers[]"))
    ]


class FurtherScoringKey(Key):
    """What a further scorer is called in the table."""

    scorer: Annotated[str, Reads("further_scorers[].name")]


SCORE_FURTHER = Stage(
    name="score_further",
    kind="further_scores",
    version=1,
    inputs=FurtherScoringInputs,
    key=FurtherScoringKey,
    files=(tables.SCORES,),
    work="eigenshift.toxicity.scoring:carry_out",
    runs_model=True,
)


class PositionFinder(Inputs):
    """What finds toxic words, where it is a scorer or a list."""

    scorer: Annotated[Classifier | None, Reads("scorer", fields=name_scorer_fields("scorer"))] = (
        None
    )
    lexicon: Annotated[WordFile | None, Reads("components.lexicon")] = None

    @classmethod
    def of(cls, settings: RefreshSettings) -> Self:
        """The one the settings ask for."""
        components = settings.components
        if components.lexicon is not None:
            return cls(lexicon=WordFile(uri=components.lexicon))
        return cls(
            scorer=Classifier.of(settings.scorer) if components.positions.asks_scorer else None
        )


class PositionInputs(Inputs):
    """What finds toxic words, and one shard of scored texts."""

    finder: PositionFinder
    continuations: Annotated[
        ArtifactReference, Of(("continuations", "labelled_text"), tables.CONTINUATIONS)
    ]
    scores: Annotated[ArtifactReference, Of(("scores", "labelled_text"), tables.SCORES)]


class PositionKey(Key):
    """What says where a toxic word is, and, where that is the scorer, its bounds."""

    positions: Annotated[PositionSource, Reads("components.positions")]
    toxic_threshold: Annotated[float | None, Reads("scorer.toxic_threshold")]
    min_attribution: Annotated[float | None, Reads("components.min_attribution")]

    @classmethod
    def of(cls, settings: RefreshSettings, **given: Any) -> Self:  # type: ignore[override]
        """Bounds of the scorer only where it is asked."""
        if not settings.components.positions.asks_scorer:
            given = {"toxic_threshold": None, "min_attribution": None} | given
        return super().of(settings, **given)

    @model_serializer(mode="wrap")
    def _leave_out_unread(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        return {name: value for name, value in document.items() if value is not None}


LOCATE_TOXIC_WORDS = Stage(
    name="locate_toxic_words",
    kind="toxic_positions",
    version=2,
    inputs=PositionInputs,
    key=PositionKey,
    files=(tables.TOXIC_POSITIONS,),
    work="eigenshift.toxicity.toxic_positions:carry_out",
    runs_model=True,
)
