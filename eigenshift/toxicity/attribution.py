"""Which words a classifier's verdict rests on: gradient times input at what it reads of them.

Of a neural classifier: the gradient of the verdict's log-odds with respect to each token's
embedding, multiplied by the embedding and summed, is the token's share to first order. One backward
pass judges all words of a batch of texts, where occlusion needs a forward pass per word; but first
order is not the whole truth, so what it proposes is checked by leave-one-out (`occlusion.py`). A
scorer that knows its shares, as a linear one does of its n-grams, is asked for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from eigenshift.base.errors import ScorerError
from eigenshift.toxicity.occlusion import Proposal
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scorers.languages import LanguageScorer
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier
from eigenshift.toxicity.word_spans import Span, list_windows, list_words

TEXTS_PER_BATCH = 32
N_PROPOSED = 3

TokenShare = tuple[Span, float]
"""Where a token (or n-gram) of the classifier lies in the text, and its share of the verdict's
log-odds."""


@runtime_checkable
class DifferentiableScorer(Protocol):
    """A scorer that is such a classifier inside."""

    def open_classifier(self) -> AbstractContextManager[OpenClassifier]:
        """The classifier, for oneself while the context lasts."""
        ...


@runtime_checkable
class ExplainingScorer(Protocol):
    """A scorer that knows what each part of a text adds to its verdict."""

    def explain(self, texts: Sequence[str]) -> list[list[TokenShare]]:
        """Shares of the verdict's log-odds, for each text."""
        ...


class GradientProposer:
    """Proposes the words with the largest gradient times input.

    Args:
        scorer: A `DifferentiableScorer` or `ExplainingScorer`, or several, each for the texts of a
            language.

    Raises:
        ScorerError: One has no gradients.
    """

    def __init__(self, scorer: Scorer) -> None:
        for part in scorer.scorers if isinstance(scorer, LanguageScorer) else [scorer]:
            _require_gradients(part)
        self._scorer = scorer

    def propose(self, texts: Sequence[str]) -> list[list[Proposal]]:
        """The best words of each text and, in Chinese, the runs around them; best first."""
        groups: Iterable[tuple[Scorer, Sequence[int]]] = [(self._scorer, range(len(texts)))]
        if isinstance(self._scorer, LanguageScorer):
            groups = self._scorer.group(texts)
        proposals: list[list[Proposal]] = [[] for _ in texts]
        for scorer, places in groups:
            shares = _attribute(scorer, [texts[place] for place in places])
            for place, of_text in zip(places, shares, strict=True):
                proposals[place] = propose_spans(texts[place], of_text)
        return proposals


def _attribute(scorer: Scorer, texts: Sequence[str]) -> list[list[TokenShare]]:
    found = _require_gradients(scorer)
    if isinstance(found, ExplainingScorer):
        return found.explain(texts)
    with found.open_classifier() as classifier:
        return attribute_tokens(classifier, texts)


def _require_gradients(scorer: Scorer) -> DifferentiableScorer | ExplainingScorer:
    if not isinstance(scorer, DifferentiableScorer | ExplainingScorer):
        raise ScorerError(
            f"scorer {scorer.name}: expected a classifier for components.positions: "
            f"attribution, found {type(scorer).__name__}, which has no gradients. Set "
            "components.positions: occlusion."
        )
    return scorer


def propose_spans(text: str, shares: Sequence[TokenShare]) -> list[Proposal]:
    """The words with the largest shares, and runs of Chinese characters that hold one of them."""
    words = {span: sum_shares(span, shares) for span in list_words(text)}
    best = sorted(words, key=lambda span: (-words[span], span))[:N_PROPOSED]
    windows = [
        window
        for window in list_windows(text)
        if window in best or any(window[0] <= span[0] and span[1] <= window[1] for span in best)
    ]
    proposals = [Proposal(window, sum_shares(window, shares)) for window in windows]
    return sorted(proposals, key=lambda item: (item.span not in best, -(item.attribution or 0.0)))


def sum_shares(span: Span, shares: Sequence[TokenShare]) -> float:
    """Share of a span: of all tokens that reach into it."""
    return sum(share for (start, end), share in shares if start < span[1] and end > span[0])


def attribute_tokens(classifier: OpenClassifier, texts: Sequence[str]) -> list[list[TokenShare]]:
    """Gradient times input of each token of each text, special tokens left out.

    Raises:
        ScorerError: The tokenizer does not say where its tokens lie.
    """
    if not getattr(classifier.tokenizer, "is_fast", False):
        raise ScorerError(
            "classifier: expected a fast tokenizer, which knows where tokens lie in the text, "
            "found a slow one. Set components.positions: occlusion."
        )
    found: list[list[TokenShare]] = [[] for _ in texts]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for first in range(0, len(order), TEXTS_PER_BATCH):
        batch = order[first : first + TEXTS_PER_BATCH]
        for place, shares in zip(
            batch, _attribute_batch(classifier, [texts[p] for p in batch]), strict=True
        ):
            found[place] = shares
    return found


def _attribute_batch(classifier: OpenClassifier, texts: list[str]) -> Iterator[list[TokenShare]]:
    encoded = classifier.tokenizer(
        texts,
        return_tensors="pt",
        return_offsets_mapping=True,
        padding=True,
        truncation=True,
        max_length=classifier.max_tokens,
    )
    offsets = encoded.pop("offset_mapping").tolist()
    products = _multiply_by_gradient(classifier, encoded.to(classifier.model.device))
    for of_text, values in zip(offsets, products.tolist(), strict=True):
        yield [
            ((start, end), value)
            for (start, end), value in zip(of_text, values, strict=True)
            if end > start
        ]


def _multiply_by_gradient(classifier: OpenClassifier, inputs: Any) -> Tensor:
    """Sum over the embedding of gradient x input, shape (batch, token)."""
    embedded: list[Tensor] = []

    def replace_output(_: Any, __: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = classifier.model.get_input_embeddings().register_forward_hook(replace_output)
    try:
        with torch.enable_grad():
            # In float64 a verdict near 1 still has log-odds and a gradient.
            scores = classifier.model(**inputs)[0].double()
            log_odds = torch.logit(classifier.judge(scores), eps=1e-300)
            (gradient,) = torch.autograd.grad(log_odds.sum(), embedded[0])
    finally:
        handle.remove()
    product: Tensor = (gradient * embedded[0].detach()).sum(-1)
    return product
