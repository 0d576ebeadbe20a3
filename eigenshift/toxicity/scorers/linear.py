"""A linear classifier of n-grams as a scorer: fast, without a hub, and exactly explained.

Reads a folder written by `eigenshift train-scorer` (`scorer_training.py`) or `eigenshift
fetch-scorer` (`fetching/`); what is in it, and the arithmetic, is `ngrams/`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eigenshift.base.errors import ScorerError
from eigenshift.ngrams import NgramClassifier, Share, identify_classifier, read_classifier
from eigenshift.settings import PlainScorerSettings
from eigenshift.store.source_files import fetch_path
from eigenshift.toxicity.scorers.interface import BLANK_REASON, Score


class LinearScorer:
    """Scores texts with an n-gram classifier.

    Args:
        name: Of the scorer in the tables.
        digest: Of what decides the scores.
        classifier: N-grams and weights.
    """

    def __init__(self, name: str, digest: str, classifier: NgramClassifier) -> None:
        self.name = name
        self.digest = digest
        self._classifier = classifier

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones are unscored."""
        scores = [Score(None, BLANK_REASON)] * len(texts)
        places = [place for place, text in enumerate(texts) if text.strip()]
        values = self._classifier.score([texts[place] for place in places]).tolist()
        for place, value in zip(places, values, strict=True):
            scores[place] = Score(value)
        return scores

    def explain(self, texts: Sequence[str]) -> list[list[Share]]:
        """What each n-gram of each text adds to the verdict's log-odds, and where it stands."""
        return self._classifier.explain(texts)


def identify_linear(settings: PlainScorerSettings) -> str:
    """Digest of what decides the scores of a folder.

    Raises:
        ScorerError: There is none, it is of another version, or a file was changed.
    """
    return identify_classifier(_find_folder(settings))


def load_linear(settings: PlainScorerSettings) -> NgramClassifier:
    """Read the classifier of a folder.

    Raises:
        ScorerError: As `identify_linear`.
    """
    return read_classifier(_find_folder(settings))


def _find_folder(settings: PlainScorerSettings) -> Path:
    """The folder, or a copy of a remote one as it is now."""
    place = settings.model or ""
    try:
        return fetch_path(place)
    except FileNotFoundError as error:
        raise ScorerError(
            f"{place}: expected the folder of a linear scorer, found none. Check scorer.model, or "
            "make one with eigenshift train-scorer or eigenshift fetch-scorer and copy it there."
        ) from error
