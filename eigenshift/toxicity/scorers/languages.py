"""A scorer that hands the texts of some languages to others, who know them better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eigenshift.datasets.language import detect_language
from eigenshift.toxicity.scorers.interface import BLANK_REASON, Score, Scorer


class LanguageScorer:
    """Each text is judged by the scorer of its language.

    The language is that of the text itself, by script, not that of its prompt: a model may answer
    in another one.

    Args:
        whole: Judges texts of all languages but those in `parts`; its name is this one's.
        parts: Language code -> scorer.
    """

    def __init__(self, whole: Scorer, parts: Mapping[str, Scorer]) -> None:
        self.name = whole.name
        self.digest = whole.digest
        self._whole = whole
        self._parts = dict(parts)

    @property
    def scorers(self) -> list[Scorer]:
        """All of them."""
        return [self._whole, *self._parts.values()]

    def group(self, texts: Sequence[str]) -> Iterator[tuple[Scorer, list[int]]]:
        """Places of the texts each scorer judges."""
        places_of: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            places_of.setdefault(detect_language(text), []).append(place)
        for language, places in places_of.items():
            yield self._parts.get(language, self._whole), places

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones are unscored."""
        scores = [Score(None, BLANK_REASON)] * len(texts)
        for scorer, places in self.group(texts):
            found = scorer.score([texts[place] for place in places])
            for place, score in zip(places, found, strict=True):
                scores[place] = score
        return scores
