"""A scorer with gradients and no training: a bag of characters in one linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eigenshift.toxicity.scorers.interface import Score
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier

BIAS = -3.0


class _Encoded(dict[str, Tensor]):
    """What a tokenizer returns: moves to a device."""

    def to(self, _: object) -> _Encoded:
        """It is on the CPU already."""
        return self


class WordTokenizer:
    """A token for each known word, one for all others; knows offsets."""

    is_fast = True

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def __call__(self, texts: Sequence[str], **_: object) -> _Encoded:
        """Encode texts, padded with token 0."""
        rows = [self._encode(text) for text in texts]
        width = max(1, max(map(len, rows)))
        padded = [row + [(0, 0, 0)] * (width - len(row)) for row in rows]
        return _Encoded(
            input_ids=torch.tensor([[token for token, _, _ in row] for row in padded]),
            offset_mapping=torch.tensor(
                [[(start, end) for _, start, end in row] for row in padded]
            ),
        )

    def _encode(self, text: str) -> list[tuple[int, int, int]]:
        found, place = [], 0
        for word in text.split(" "):
            if word:
                index = self.words.index(word) + 2 if word in self.words else 1
                found.append((index, place, place + len(word)))
            place += len(word) + 1
        return found


class BagOfWords(nn.Module):
    """Sum of the words' embeddings, a tanh, one class: not linear, like a real classifier."""

    device = torch.device("cpu")

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(len(weights) + 2, 4)
        with torch.no_grad():
            self.embeddings.weight.zero_()
            self.embeddings.weight[2:, 0] = torch.tensor(weights)
            self.embeddings.weight[1:, 1] = 0.1

    def get_input_embeddings(self) -> nn.Embedding:
        """As transformers' models have it."""
        return self.embeddings

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """Class scores, shape (batch, 1)."""
        summed = self.embeddings(input_ids)[..., 0].sum(1, keepdim=True)
        return (BIAS + 8 * torch.tanh(summed / 8),)


class GradientScorer:
    """Toxicity by words with weights; `open_classifier` gives its gradients away."""

    name = "bag"
    digest = "bag-1"

    def __init__(self, weights: dict[str, float]) -> None:
        self.model = BagOfWords(list(weights.values()))
        self.tokenizer = WordTokenizer(list(weights))
        self.n_scored = 0

    @contextmanager
    def open_classifier(self) -> Iterator[OpenClassifier]:
        """The classifier itself."""
        yield OpenClassifier(self.model, self.tokenizer, self._judge, 512)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts; blank ones have no score."""
        self.n_scored += len(texts)
        scores: list[Any] = []
        for text in texts:
            encoded = self.tokenizer([text])
            probability = float(self._judge(self.model(encoded["input_ids"])[0]))
            scores.append(Score(probability) if text.strip() else Score(None, "blank text"))
        return scores

    @staticmethod
    def _judge(class_scores: Tensor) -> Tensor:
        return torch.sigmoid(class_scores[:, 0])
