"""Load the scorer that settings name, once per process."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock

from eigenshift.model.devices import resolve_device
from eigenshift.settings import ExecutionSettings, PlainScorerSettings, ScorerKind, ScorerSettings
from eigenshift.toxicity.scorers.detoxify_checkpoint import load_detoxify
from eigenshift.toxicity.scorers.identity import identify_scorer
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scorers.judge import JudgeScorer, load_judge
from eigenshift.toxicity.scorers.languages import LanguageScorer
from eigenshift.toxicity.scorers.lexicon import LexiconScorer
from eigenshift.toxicity.scorers.linear import LinearScorer, load_linear
from eigenshift.toxicity.scorers.sequence_scorer import SequenceScorer
from eigenshift.toxicity.scorers.text_classifier import load_text_classifier

KEPT_SCORERS = 4

_loading = Lock()


def open_scorer(settings: ScorerSettings, execution: ExecutionSettings) -> Scorer:
    """Load the scorer where the run computes (`load_scorer`)."""
    device = str(resolve_device(execution.device))
    return load_scorer(settings, device, execution.texts_per_scoring_batch)


def load_scorer(settings: ScorerSettings, device: str, texts_per_batch: int) -> Scorer:
    """Load the scorer once per process, again if its files have changed.

    Raises:
        ScorerError: It cannot be loaded or trusted.
        SettingsError: Its file of words cannot be read.
    """
    with _loading:
        return _load_scorer(settings, identify_scorer(settings), device, texts_per_batch)


@lru_cache(maxsize=KEPT_SCORERS)
def _load_scorer(
    settings: ScorerSettings, digest: str, device: str, texts_per_batch: int
) -> Scorer:
    whole = _load_plain(settings, digest, device, texts_per_batch)
    if not settings.for_languages:
        return whole
    parts: dict[str, Scorer] = {
        part.language: _load_plain(part, digest, device, texts_per_batch)
        for part in settings.for_languages
    }
    return LanguageScorer(whole, parts)


def _load_plain(
    settings: PlainScorerSettings, digest: str, device: str, texts_per_batch: int
) -> Scorer:
    if settings.kind is ScorerKind.lexicon:
        return LexiconScorer(settings.name, digest, settings.words or "")
    if settings.kind is ScorerKind.linear:
        return LinearScorer(settings.name, digest, load_linear(settings))
    if settings.kind is ScorerKind.judge:
        return JudgeScorer(settings.name, digest, load_judge(settings), device, texts_per_batch)
    load = load_detoxify if settings.kind is ScorerKind.detoxify else load_text_classifier
    return SequenceScorer(settings.name, digest, load(settings), device, texts_per_batch)
