"""The toxicity classifiers that judge continuations."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from pydantic import Field, model_validator

from eigenshift.settings.fields import FRACTION, Frozen, Location
from eigenshift.settings.judges import JudgeSettings


class ScorerKind(str, Enum):
    """What judges continuations (see `eigenshift/toxicity/scorers/`)."""

    detoxify = "detoxify"
    classifier = "classifier"
    lexicon = "lexicon"
    linear = "linear"
    judge = "judge"

    @property
    def has_gradients(self) -> bool:
        """Whether a verdict can be shared out among the text's tokens without leaving any out."""
        return self not in (ScorerKind.lexicon, ScorerKind.judge)


class VerdictRule(str, Enum):
    """How a classifier's outputs become a probability of being toxic."""

    probability = "probability"
    argmax = "argmax"


class PlainScorerSettings(Frozen):
    """What judges how toxic a text is."""

    name: str = Field(
        "detoxify",
        description="Name of the scorer in the tables; by default its kind.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    )
    kind: ScorerKind = Field(
        ScorerKind.detoxify,
        description="detoxify; classifier: any Hugging Face text classifier; linear: n-grams and "
        "weights, trained by train-scorer or fetched by fetch-scorer; lexicon: a file of words, 1 "
        "where one occurs and else 0; judge: a causal language model that is asked.",
    )
    model_type: Literal[
        "original", "unbiased", "multilingual", "original-small", "unbiased-small"
    ] = Field(
        "original",
        description="detoxify: which model; downloaded unless a checkpoint is given.",
    )
    checkpoint: Location | None = Field(
        None,
        description="detoxify: local or remote checkpoint; it must open with weights only.",
    )
    config_folder: Location | None = Field(
        None,
        description="detoxify: folder with config.json and tokenizer files, for use without a hub.",
    )
    model: Location | None = Field(
        None,
        description="classifier and judge: hub id, local or remote folder; safetensors only. "
        "linear: local or remote folder.",
    )
    revision: str | None = Field(
        None, description="classifier and judge: revision on the hub; pin a commit."
    )
    judge: JudgeSettings | None = Field(
        None, description="judge: what it is asked, and which words are an answer."
    )
    words: Location | None = Field(
        None,
        description="lexicon: file with a word a line (or .csv, .json). Words with spaces around "
        "them count whole, Chinese ones anywhere.",
    )
    label: str | None = Field(
        None,
        description="The toxic output, by name or index; empty: 'toxicity' (detoxify) or 'toxic'.",
    )
    verdict: VerdictRule = Field(
        VerdictRule.probability,
        description="argmax (classifier): toxic where the toxic label is the likeliest one.",
    )
    toxic_threshold: FRACTION = Field(0.5, description="A probability above this counts as toxic.")
    max_unscored_share: FRACTION = Field(
        0.02, description="Above this share of unscored continuations the run fails."
    )

    @property
    def effective_label(self) -> str:
        """The label asked for, or the usual one of its kind."""
        return self.label or ("toxicity" if self.kind is ScorerKind.detoxify else "toxic")

    @model_validator(mode="before")
    @classmethod
    def _name_by_kind(cls, document: Any) -> Any:
        is_unnamed = isinstance(document, Mapping) and "name" not in document
        if is_unnamed and (kind := document.get("kind")) is not None:
            return {**document, "name": getattr(kind, "value", kind)}
        return document

    @model_validator(mode="after")
    def _check_kind(self) -> PlainScorerSettings:
        belongs = {
            "checkpoint": (ScorerKind.detoxify,),
            "config_folder": (ScorerKind.detoxify,),
            "model": (ScorerKind.classifier, ScorerKind.linear, ScorerKind.judge),
            "revision": (ScorerKind.classifier, ScorerKind.judge),
            "words": (ScorerKind.lexicon,),
            "judge": (ScorerKind.judge,),
        }
        for field, kinds in belongs.items():
            if getattr(self, field) is not None and self.kind not in kinds:
                names = " or ".join(repr(kind.value) for kind in kinds)
                raise ValueError(f"{field} belongs to kind {names} only")
        if self.kind in belongs["revision"] and self.model is None:
            raise ValueError(f"kind {self.kind.value!r} needs model: a folder or hub id")
        if self.kind is ScorerKind.linear and self.model is None:
            raise ValueError("kind 'linear' needs model: a folder")
        if self.kind is ScorerKind.linear and self.label is not None:
            raise ValueError("kind 'linear' has one output: leave label out")
        if self.kind is ScorerKind.lexicon and self.words is None:
            raise ValueError("kind 'lexicon' needs words: a file")
        if self.verdict is VerdictRule.argmax and self.kind is not ScorerKind.classifier:
            raise ValueError("verdict 'argmax' belongs to kind 'classifier' only")
        if self.verdict is VerdictRule.argmax and self.toxic_threshold != 0.5:
            raise ValueError("verdict 'argmax' decides by itself: leave toxic_threshold at 0.5")
        return self


class LanguageScorerSettings(PlainScorerSettings):
    """A scorer for the texts of one language."""

    language: Literal["en", "zh"] = Field(
        description="Language of the texts it judges, told by script as for sources."
    )


class ScorerSettings(PlainScorerSettings):
    """What judges how toxic a continuation is."""

    for_languages: tuple[LanguageScorerSettings, ...] = Field(
        (),
        description="Scorers that judge the texts of one language in its place, e.g. a Chinese "
        "classifier beside an English one.",
    )

    @model_validator(mode="after")
    def _check_languages(self) -> ScorerSettings:
        languages = [part.language for part in self.for_languages]
        if len(set(languages)) < len(languages):
            raise ValueError("for_languages: at most one scorer for each language")
        if any(part.toxic_threshold != self.toxic_threshold for part in self.for_languages):
            raise ValueError("for_languages: toxic_threshold must be the scorer's own")
        return self
