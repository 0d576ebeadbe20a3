"""What was probably meant by a name that there is none of.

Used wherever a person types a name that must be one of several: a setting, a preset, a saved
question, a run, a release. What the names are is their rooms' business.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LEAST_LIKENESS = 0.6
"""Of 0 to 1, `difflib.SequenceMatcher.ratio`."""
SHORTEST_PART = 4
"""Letters of a name by which it is recognised, such as the end of a run's id."""


def find_meant(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, None if none is near.

    Args:
        word: What was typed.
        names: What there is, the likeliest last where several are equally near.
    """
    there = list(names)
    typed = word.strip().lower()
    if len(typed) >= SHORTEST_PART:
        holding = [name for name in there if typed in name.lower()]
        if holding and (len(holding) == 1 or holding[-1].lower().startswith(typed)):
            return holding[-1]
    by_lower = {name.lower(): name for name in there}
    near = get_close_matches(typed, by_lower, n=1, cutoff=LEAST_LIKENESS)
    return by_lower[near[0]] if near else None


def suggest(word: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?`, with the space before it, to be put behind a sentence; or nothing."""
    meant = find_meant(word, names)
    return "" if meant is None else f" Did you mean {meant!r}?"
