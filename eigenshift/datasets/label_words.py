"""Words that data sets write as labels: which say toxic, which not, and which may be shown.

Knows words only. A word that is in no list here may be a text, and is never repeated in an error.
"""

from __future__ import annotations

import re
from functools import lru_cache

TRUE_WORDS = frozenset({"true", "yes"})
FALSE_WORDS = frozenset({"false", "no"})
# fmt: off
TOXIC_WORDS = frozenset({
    "toxic", "hate", "hateful", "hatespeech", "hate speech", "offensive", "offensive language",
    "abusive", "abuse", "unsafe", "harmful", "insulting", "insult",
})
NONTOXIC_WORDS = frozenset({
    "neutral", "normal", "neither", "none", "clean", "safe", "benign", "harmless", "civil",
})
AMBIGUOUS_WORDS = frozenset({
    "spam", "sexism", "racism", "sexist", "racist", "other", "mixed", "unsure", "unknown",
    "positive", "negative", "low", "medium", "high", "severe", "mild", "off", "on", "not", "hof",
    "idk", "skip", "relation", "threat", "profanity", "obscene", "yellow", "red", "green",
})
# fmt: on
NEGATION = re.compile(r"(not|non|no|un) ?")
KNOWN_LABELS = (
    "0 and 1, true and false, yes and no, toxic and not toxic, hate and neutral, offensive and "
    "normal, and the like; as scores 0 to 1, written 0.5, 0,5 or 50%"
)
"""What an error lists."""


@lru_cache(maxsize=1_000)
def read_word(text: str) -> bool | None:
    """Whether a label says toxic; None where it is no word known to say either."""
    word = _fold(text)
    if word in TRUE_WORDS or word in TOXIC_WORDS:
        return True
    if word in FALSE_WORDS or word in NONTOXIC_WORDS:
        return False
    negation = NEGATION.match(word)
    if negation is not None and word[negation.end() :] in TOXIC_WORDS:
        return False
    return None


def is_label_word(text: str) -> bool:
    """Whether a word is a label beyond doubt, so that an error may show it."""
    return read_word(text) is not None or _fold(text) in AMBIGUOUS_WORDS


def _fold(text: str) -> str:
    return " ".join(text.casefold().replace("-", " ").replace("_", " ").split())
