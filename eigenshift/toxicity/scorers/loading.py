"""Identify and load the scorer that settings name, once per process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock

from eigenshift.model.devices import resolve_device
from eigenshift.model.files import digest_unchanged
from eigenshift.settings import ExecutionSettings, PlainScorerSettings, ScorerKind, ScorerSettings
from eigenshift.store.source_files import digest_file, fetch_path, has_protocol
from eigenshift.toxicity.scorers.detoxify_checkpoint import load_detoxify, require_existing
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scorers.judge import JudgeScorer, describe_judge, load_judge
from eigenshift.toxicity.scorers.languages import LanguageScorer
from eigenshift.toxicity.scorers.lexicon import LexiconScorer
from eigenshift.toxicity.scorers.linear import LinearScorer, identify_linear, load_linear
from eigenshift.toxicity.scorers.pretrained import identify_classifier
from eigenshift.toxicity.scorers.sequence_scorer import SequenceScorer
from eigenshift.toxicity.scorers.text_classifier import load_text_classifier

KEPT_SCORERS = 4

_loading = Lock()


def identify_scorer(settings: ScorerSettings) -> str:
    """Digest of what decides the scores: the kind, the verdict, and the files' content.

    Raises:
        ScorerError: A file is missing.
    """
    digest = hashlib.sha256()
    for part in _list_parts(settings):
        digest.update(f"{part}\n".encode())
    for scorer in settings.for_languages:
        for part in (scorer.language, *_list_parts(scorer)):
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()


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


def _list_parts(settings: PlainScorerSettings) -> Iterator[str]:
    yield settings.kind.value
    if settings.kind is ScorerKind.lexicon:
        yield _digest(settings.words or "")
        return
    if settings.kind is ScorerKind.linear:
        yield identify_linear(settings)
        return
    if settings.kind is ScorerKind.judge:
        yield from describe_judge(settings)
        return
    yield settings.effective_label
    yield settings.verdict.value
    if settings.kind is ScorerKind.classifier:
        yield identify_classifier(settings).digest
        return
    yield settings.model_type
    if settings.checkpoint is not None:
        yield _digest(settings.checkpoint)
    if settings.config_folder is not None:
        folder = fetch_path(require_existing(settings.config_folder))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield f"{path.relative_to(folder)}:{digest_unchanged(path)}"


def _digest(uri: str) -> str:
    """Digest of a file; of a local one only once as long as it is unchanged."""
    require_existing(uri)
    return digest_file(uri) if has_protocol(uri) else digest_unchanged(Path(uri))
