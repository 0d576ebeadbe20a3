"""One study of the tiny model for all tests of this room; a function stands for the classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigenshift.api.models import Model, load_model
from eigenshift.api.study import Study, study_head
from eigenshift.api.texts import Texts, read_texts
from eigenshift.toxicity.word_spans import list_words

SMALL: dict[str, Any] = {
    "generation.n_samples": 5,
    "generation.n_tokens": 12,
    "components.min_toxic_positions": 5,
    "components.n_resamples": 20,
    "patch.n_terms": 4,
    "patch.n_rounds": 1,
    "evaluation.n_bootstrap": 100,
}


def is_blamed(word: str) -> bool:
    """Whether a word counts as toxic: by its first letter."""
    return "a" <= word[:1].lower() <= "m"


def judge_words(texts: list[str]) -> list[float]:
    """The more such words, the more toxic."""
    return [
        1 - 0.4 ** sum(is_blamed(text[start:end]) for start, end in list_words(text))
        for text in texts
    ]


@pytest.fixture(scope="session")
def model(tiny_model_folder: Path) -> Model:
    """The tiny GPT-2 (tied head). Shared: leave it as you found it."""
    return load_model(tiny_model_folder, device="cpu")


@pytest.fixture(scope="session")
def texts(neutral_texts: list[str]) -> Texts:
    """Forty texts, of which those about a river or a market count as toxic."""
    labels = [("river" in text or "market" in text) for text in neutral_texts[:40]]
    return read_texts(neutral_texts[:40], labels, name="made-up")


@pytest.fixture(scope="session")
def neutral(neutral_texts: list[str]) -> Texts:
    """All sixty texts, without labels."""
    return read_texts(neutral_texts, name="neutral")


@pytest.fixture(scope="session")
def prompts(neutral_texts: list[str]) -> tuple[Texts, Texts]:
    """Two parts of prompts."""
    return read_texts(neutral_texts[:40], name="prompts").split(24, 12)


@pytest.fixture(scope="session")
def study(model: Model, prompts: tuple[Texts, Texts], neutral: Texts, texts: Texts) -> Study:
    """Of the tiny model; its steps are done when a test asks for them."""
    return study_head(model, prompts[0], neutral, texts, scorer=judge_words, settings=SMALL)
