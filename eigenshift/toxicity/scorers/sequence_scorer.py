"""A sequence classifier as a scorer: tokens in batches, class scores, one probability.

What the classifier is and where its weights come from is `detoxify_checkpoint.py`'s and
`text_classifier.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from eigenshift.model.tokens import read_positions
from eigenshift.toxicity.scorers.interface import Score, score_by_length, score_patiently

MAX_TOKENS = 512
"""Longest input where neither tokenizer nor model states one."""


@dataclass(frozen=True)
class OpenClassifier:
    """A neural classifier, open to those who take its gradients (`attribution.py`).

    Attributes:
        model: In eval mode; has word embeddings (`get_input_embeddings`); class scores come first.
        tokenizer: Its tokenizer; gives the offsets of its tokens.
        judge: Class scores, shape (batch, class) -> probability of being toxic, shape (batch,).
        max_tokens: Longer texts are truncated.
    """

    model: Any
    tokenizer: Any
    judge: Callable[[Tensor], Tensor]
    max_tokens: int


class SequenceScorer:
    """Scores texts with a sequence classifier.

    Args:
        name: Of the scorer in the tables.
        digest: What decides the scores.
        classifier: Model, tokenizer and verdict.
        device: Where the classifier runs.
        texts_per_batch: Texts per forward pass; does not change the scores beyond rounding.
    """

    def __init__(
        self, name: str, digest: str, classifier: OpenClassifier, device: str, texts_per_batch: int
    ) -> None:
        self.name = name
        self.digest = digest
        classifier.model.to(device)
        self._classifier = classifier
        self._texts_per_batch = texts_per_batch
        self._lock = Lock()

    @contextmanager
    def open_classifier(self) -> Iterator[OpenClassifier]:
        """The classifier itself, for oneself while the context lasts."""
        with self._lock:
            yield self._classifier

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones are unscored."""
        return score_by_length(texts, self._texts_per_batch, self._score_batch)

    def _score_batch(self, texts: list[str]) -> list[Score]:
        return score_patiently(texts, self._compute)

    @torch.inference_mode()
    def _compute(self, texts: list[str]) -> list[float]:
        found = self._classifier
        with self._lock:
            inputs = found.tokenizer(
                texts,
                return_tensors="pt",
                truncation=True,
                max_length=found.max_tokens,
                padding=True,
            ).to(found.model.device)
            class_scores = found.model(**inputs)[0].float()
            return [float(value) for value in found.judge(class_scores).cpu()]


def wrap_classifier(
    model: Any, tokenizer: Any, judge: Callable[[Tensor], Tensor]
) -> OpenClassifier:
    """Put a loaded model into eval mode and find how long its texts may be."""
    return OpenClassifier(model.eval(), tokenizer, judge, find_max_tokens(model, tokenizer))


def find_max_tokens(model: Any, tokenizer: Any) -> int:
    """Most tokens of one text that the classifier takes."""
    positions = read_positions(model) or MAX_TOKENS + 2
    # RoBERTa's positions begin after its padding token, which leaves two less than it has.
    return int(min(tokenizer.model_max_length, positions - 2))
