"""How many texts for evaluation each shard gives; sizes alone, no text is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from eigenshift.components.text_halves import CALIBRATION_SHARE


def allot_texts(
    n_rows: Sequence[int], max_texts: int, count_evaluated: Callable[[], Sequence[int]]
) -> list[int]:
    """How many texts to take from the top of each shard's evaluation part.

    All shards are represented in proportion, by their rows where every shard has enough texts for
    evaluation (about half of its rows, by their ids) and else by those.

    Args:
        n_rows: Rows of each shard.
        max_texts: Upper bound of the sum; it is reached if there are as many texts for evaluation.
        count_evaluated: Gives the texts for evaluation of each shard; asked only if a shard may
            have too few, since it reads all of them.
    """
    if sum(n_rows) <= max_texts:
        return list(n_rows)
    allotted = _share(n_rows, max_texts)
    if all(map(_has_surely, n_rows, allotted)):
        return allotted
    n_evaluated = count_evaluated()
    n_taken = sum(map(min, allotted, n_evaluated))
    if n_taken == min(max_texts, sum(n_evaluated)):
        return allotted
    return _share(n_evaluated, min(max_texts, sum(n_evaluated)))


def _share(sizes: Sequence[int], total: int) -> list[int]:
    """Split a total in proportion to sizes."""
    ends = [round(total * end / sum(sizes)) for end in accumulate(sizes)]
    return [end - start for start, end in pairwise([0, *ends])]


def _has_surely(n_rows: int, n_texts: int) -> bool:
    """Whether a shard has so many texts for evaluation: half of its rows, 5 deviations less."""
    return n_texts <= n_rows / CALIBRATION_SHARE - 5 * math.sqrt(n_rows) / CALIBRATION_SHARE
