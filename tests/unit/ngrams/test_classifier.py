"""Probabilities are scikit-learn's to the last bit; shares are what they claim to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from eigenshift.ngrams import Member, NgramClassifier
from eigenshift.ngrams.analysis import Analysis, Unit
from eigenshift.ngrams.classifier import TEXTS_PER_BATCH, Block
from tests.support.linear_scorers import ODD_TEXTS, convert, fit_pipeline, make_texts

WORDS, CHARACTERS = ("word", (1, 2)), ("char_wb", (2, 5))


@pytest.mark.parametrize("is_calibrated", [False, True])
@pytest.mark.parametrize("kinds", [(WORDS,), (CHARACTERS,), (WORDS, CHARACTERS)])
@pytest.mark.parametrize("options", [{}, {"sublinear_tf": True, "min_df": 2, "lowercase": False}])
def test_probabilities_equal_those_of_scikit_learn(
    kinds: Sequence[Any], is_calibrated: bool, options: dict[str, Any]
) -> None:
    """Bit for bit, of texts it has not seen, of odd ones, and of more than one batch."""
    pipeline = fit_pipeline(*make_texts(250), kinds, is_calibrated=is_calibrated, **options)
    unseen, _ = make_texts(60, seed=1)
    texts = [*unseen, *ODD_TEXTS]
    expected = pipeline.predict_proba(texts)[:, 1]
    assert expected.std() > 0.1
    classifier = convert(pipeline)
    np.testing.assert_array_equal(classifier.score(texts), expected)
    many = texts * (TEXTS_PER_BATCH // len(texts) + 1)
    found = classifier.score(many)
    assert len(found) > TEXTS_PER_BATCH
    np.testing.assert_array_equal(found, np.tile(expected, len(many) // len(texts)))


def test_no_text_has_no_score() -> None:
    """An empty list gives an empty array."""
    assert convert(fit_pipeline(*make_texts(60))).score([]).shape == (0,)


def test_a_hand_computed_probability() -> None:
    """Two words twice and once, idf 1 and 2: a row of (2, 2) / sqrt 8, weights 3 and -1."""
    block = Block(Analysis(Unit.words, 1, 1), ["kettle", "garden"], np.array([1.0, 2.0]))
    classifier = NgramClassifier([block], [Member(np.array([3.0, -1.0]), 0.5)])
    log_odds = (2 * 3 - 2 * 1) / np.sqrt(8) + 0.5
    (found,) = classifier.score(["kettle Garden kettle"])
    assert found == pytest.approx(1 / (1 + np.exp(-log_odds)), abs=1e-15)


def test_shares_of_one_member_and_the_intercept_are_the_log_odds() -> None:
    """The verdict is fully explained, by words and by characters together."""
    classifier = convert(fit_pipeline(*make_texts(250)))
    texts, _ = make_texts(30, seed=1)
    shares = classifier.explain([*texts, ""])
    found = [sum(share for _, share in of_text) for of_text in shares]
    expected = logit(classifier.score([*texts, ""])) - classifier.members[0].intercept
    assert found == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_a_share_is_the_derivative_of_scaling_an_n_gram(is_calibrated: bool) -> None:
    """By central differences on the TF-IDF of each n-gram, with scikit-learn's own model."""
    pipeline = fit_pipeline(*make_texts(250), (WORDS,), is_calibrated=is_calibrated)
    text = "the garden is a zorbfool, a Zorbfool kettle"
    vectorizer, model = pipeline[0].transformer_list[0][1], pipeline[1]
    row, step = vectorizer.transform([text]).toarray(), 1e-4
    expected = {}
    for ngram, column in vectorizer.vocabulary_.items():
        if row[0, column] != 0:
            ends = []
            for scale in (1 - step, 1 + step):
                scaled = row.copy()
                scaled[0, column] *= scale
                ends.append(logit(model.predict_proba(scaled)[0, 1]))
            expected[ngram] = (ends[1] - ends[0]) / (2 * step)
    (shares,) = convert(pipeline).explain([text])
    found: dict[str, float] = {}
    for (start, end), share in shares:
        ngram = " ".join(text[start:end].lower().replace(",", "").split())
        # of words between which one letter stands the n-gram leaves it out
        ngram = " ".join(word for word in ngram.split() if len(word) > 1)
        found[ngram] = found.get(ngram, 0.0) + share
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert max(found, key=found.__getitem__) == "zorbfool"


def test_a_verdict_of_one_still_has_shares() -> None:
    """Of an ensemble too, where the probability has no digit left."""
    block = Block(Analysis(Unit.words, 1, 1), ["zorbfool", "garden"], np.ones(2))
    members = [Member(np.array([90.0, 2.0]), 0.0), Member(np.array([60.0, 1.0]), 0.0, -2.0, 0.1)]
    classifier = NgramClassifier([block], members)
    assert classifier.score(["zorbfool garden"]) == 1.0
    (shares,) = classifier.explain(["zorbfool garden"])
    assert dict(shares)[(0, 8)] > 10 * dict(shares)[(9, 15)] > 0


def test_the_n_grams_are_never_shown() -> None:
    """They may be offensive."""
    classifier = convert(fit_pipeline(*make_texts(60)))
    assert "zorb" not in repr(classifier.blocks[0])
    assert classifier.n_ngrams == sum(len(block.vocabulary) for block in classifier.blocks)
