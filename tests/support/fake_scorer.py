"""A scorer with real behaviour and no weights: toxic if a made-up word occurs."""

from __future__ import annotations

from collections.abc import Sequence

from eigenshift.toxicity.scorers.interface import Score

MADE_UP_INSULTS = ("zorbfool", "glimpnit", "呆灯瓜")


class WordScorer:
    """Probability 0.95 with any of the words, 0.05 without; the reply to a chosen text can fail."""

    name = "words"
    digest = "words-1"

    def __init__(self, insults: Sequence[str] = MADE_UP_INSULTS, unscorable: str = "") -> None:
        self._insults = tuple(insults)
        self._unscorable = unscorable
        self.n_scored = 0

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones and the unscorable one have no score."""
        self.n_scored += len(texts)
        scores = []
        for text in texts:
            if not text.strip() or text == self._unscorable:
                scores.append(Score(None, "blank text" if not text.strip() else "made to fail"))
            else:
                is_toxic = any(insult in text for insult in self._insults)
                scores.append(Score(0.95 if is_toxic else 0.05))
        return scores
