"""A list of words as a scorer: 1 where one of them occurs, 0 where none does.

Coarse, fast and of any language; useful beside a classifier. Its words are never logged or shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from eigenshift.toxicity.scorers.interface import BLANK_REASON, Score
from eigenshift.toxicity.word_lists import WordList, read_words


class LexiconScorer:
    """Scores texts by the words they contain (`word_lists.WordList` says what counts).

    Args:
        name: Of the scorer in the tables.
        digest: Of the file of words.
        words: Location of the file.
    """

    def __init__(self, name: str, digest: str, words: str) -> None:
        self.name = name
        self.digest = digest
        self._words = WordList(read_words(words))

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones are unscored."""
        return [
            Score(float(self._words.occurs_in(text))) if text.strip() else Score(None, BLANK_REASON)
            for text in texts
        ]
