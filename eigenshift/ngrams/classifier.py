"""A linear classifier of texts by their n-grams: TF-IDF, weights, probabilities, and shares.

A text becomes one row of sparse numbers: for each n-gram its count, or 1 + log of it, times the
n-gram's idf, the n-grams of a block scaled to length 1. Each member of the classifier weighs the
row; its sum becomes a probability by a sigmoid, and the members' mean is the verdict: one member
is a logistic regression, several are a calibrated ensemble. In float64 and in scikit-learn's order
of operations, so that probabilities equal its own bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
from scipy import sparse
from scipy.special import expit, log_expit, logsumexp

from eigenshift.base.arrays import FloatArray
from eigenshift.ngrams.analysis import Analysis, NgramFinder, Occurrence, Span

TEXTS_PER_BATCH = 1024

Share = tuple[Span, float]
"""Where an n-gram stands in a text, and its share of the verdict's log-odds."""


@dataclass(frozen=True)
class Block:
    """N-grams of one kind.

    Attributes:
        analysis: What counts as one.
        vocabulary: The n-grams, in the order of their columns. May be offensive: never shown.
        idf: Shape (n-gram,), by which counts are multiplied.
        sublinear: Counts become 1 + log count first.
    """

    analysis: Analysis
    vocabulary: Sequence[str] = field(repr=False)
    idf: FloatArray = field(repr=False)
    sublinear: bool = False


@dataclass(frozen=True)
class Member:
    """One linear model and its sigmoid: 1 / (1 + exp(slope * sum + offset)).

    Attributes:
        weights: Shape (n-gram of all blocks,).
        intercept: Added to the weighted sum.
        slope: -1 for a logistic regression.
        offset: 0 for a logistic regression.
    """

    weights: FloatArray = field(repr=False)
    intercept: float
    slope: float = -1.0
    offset: float = 0.0


class NgramClassifier:
    """Scores and explains texts. Safe to use from several threads.

    Args:
        blocks: Kinds of n-grams; their columns stand side by side.
        members: At least one.
    """

    def __init__(self, blocks: Sequence[Block], members: Sequence[Member]) -> None:
        self.blocks = tuple(blocks)
        self.members = tuple(members)
        self._finders = [NgramFinder(block.analysis, block.vocabulary) for block in blocks]
        self._weights = np.stack([member.weights for member in self.members])

    @property
    def n_ngrams(self) -> int:
        """N-grams of all blocks."""
        return sum(len(block.vocabulary) for block in self.blocks)

    def score(self, texts: Sequence[str]) -> FloatArray:
        """Probability of each text of being toxic, shape (text,)."""
        batches = [
            self._score_batch(texts[first : first + TEXTS_PER_BATCH])
            for first in range(0, len(texts), TEXTS_PER_BATCH)
        ]
        return np.concatenate([np.zeros(0), *batches])

    def explain(self, texts: Sequence[str]) -> list[list[Share]]:
        """What each n-gram of each text adds to the log-odds of the verdict.

        Gradient of the log-odds times the n-gram's TF-IDF, shared equally among its occurrences.
        With one member the shares of a text and the intercept sum up to its log-odds; with several
        they do to first order.

        Returns:
            For each text its occurrences, block by block.
        """
        found = [[finder.find(text) for text in texts] for finder in self._finders]
        rows = self._weigh([[[n for n, _ in of_text] for of_text in part] for part in found])
        gradients = self._weigh_members(rows)
        shares = []
        for text in range(len(texts)):
            within = slice(rows.indptr[text], rows.indptr[text + 1])
            columns = rows.indices[within]
            values = rows.data[within] * (gradients[:, text] @ self._weights[:, columns])
            total = dict(zip(columns.tolist(), values.tolist(), strict=True))
            occurrences = self._number([of_block[text] for of_block in found])
            counts = Counter(column for column, _ in occurrences)
            shares.append([(span, total[column] / counts[column]) for column, span in occurrences])
        return shares

    def _score_batch(self, texts: Sequence[str]) -> FloatArray:
        rows = self._weigh([[item.list_numbers(text) for text in texts] for item in self._finders])
        total = np.zeros(len(texts))
        for member in self.members:
            total += expit(-_add_up(member, rows))
        return total / len(self.members)

    def _number(self, of_blocks: Sequence[list[Occurrence]]) -> list[Occurrence]:
        """Occurrences in one text, numbered through all blocks."""
        sizes = [len(block.vocabulary) for block in self.blocks]
        return [
            (first + number, span)
            for first, of_block in zip(accumulate([0, *sizes[:-1]]), of_blocks, strict=True)
            for number, span in of_block
        ]

    def _weigh(self, numbers: Sequence[Sequence[list[int]]]) -> sparse.csr_array:
        """TF-IDF of all blocks, shape (text, n-gram), of the n-grams of each block in each text."""
        parts = [weigh_counts(*pair) for pair in zip(self.blocks, numbers, strict=True)]
        return parts[0] if len(parts) == 1 else sparse.csr_array(sparse.hstack(parts, format="csr"))

    def _weigh_members(self, rows: sparse.csr_array) -> FloatArray:
        """Derivative of the verdict's log-odds by each member's sum, shape (member, text).

        Of the mean p of n probabilities p_m it is -slope * p_m (1 - p_m) / (n p (1 - p)); by
        logarithms, so that a verdict of 1 to all digits still has a gradient.
        """
        log_odds = -np.stack([_add_up(member, rows) for member in self.members])
        toxic, other = log_expit(log_odds), log_expit(-log_odds)
        whole = logsumexp(toxic, axis=0) + logsumexp(other, axis=0) - np.log(len(self.members))
        slopes = np.array([member.slope for member in self.members])
        return np.asarray(-slopes[:, None] * np.exp(toxic + other - whole))


def _add_up(member: Member, rows: sparse.csr_array) -> FloatArray:
    """Minus a member's log-odds, shape (text,)."""
    sums = rows @ member.weights + member.intercept
    return np.asarray(member.slope * sums + member.offset)


def weigh_counts(block: Block, numbers: Sequence[list[int]]) -> sparse.csr_array:
    """TF-IDF of one block's n-grams, rows of length 1 (or 0).

    Args:
        block: The n-grams.
        numbers: For each text those in it, as often as they occur.

    Returns:
        Shape (text, n-gram), columns of each row in order.
    """
    columns = np.array(list(chain.from_iterable(numbers)), dtype=np.int32)
    ends = np.cumsum([0, *map(len, numbers)], dtype=np.int32)
    shape = (len(numbers), len(block.vocabulary))
    rows = sparse.csr_array((np.ones(len(columns)), columns, ends), shape=shape)
    rows.sum_duplicates()
    if block.sublinear:
        rows.data = np.log(rows.data) + 1.0
    rows.data *= block.idf[rows.indices]
    lengths = np.sqrt(_square_rows(rows))
    lengths[lengths == 0.0] = 1.0
    rows.data /= np.repeat(lengths, np.diff(rows.indptr))
    return rows


def _square_rows(rows: sparse.csr_array) -> FloatArray:
    """Sum of squares of each row, term after term as scikit-learn has it; numpy sums in pairs."""
    places = np.arange(rows.nnz, dtype=rows.indices.dtype)
    spread = sparse.csr_array((rows.data, places, rows.indptr), shape=(rows.shape[0], rows.nnz))
    return np.asarray(spread @ rows.data)
