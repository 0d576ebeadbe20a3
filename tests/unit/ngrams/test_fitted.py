"""What scikit-learn can fit and we would score otherwise is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from eigenshift.base.errors import ScorerError
from eigenshift.ngrams.fitted import convert_fitted
from tests.support.linear_scorers import make_texts

TEXTS, IS_TOXIC = make_texts(200)


def fit(vectorizer: Any, model: Any, labels: Any = IS_TOXIC) -> Any:
    """Fit both and convert them."""
    return convert_fitted([vectorizer], model.fit(vectorizer.fit_transform(TEXTS), labels))


@pytest.mark.parametrize(
    "options",
    [
        {"analyzer": "char"},
        {"strip_accents": "unicode"},
        {"binary": True},
        {"norm": "l1"},
        {"use_idf": False},
        {"token_pattern": r"\w+"},
        {"vocabulary": ["the", "zorbfool"]},
        {"dtype": np.float32},
        {"stop_words": "english", "ngram_range": (1, 2)},
        {"tokenizer": str.split, "token_pattern": None},
        {"preprocessor": str.upper},
    ],
)
def test_other_ways_to_read_texts_are_refused(options: dict[str, Any]) -> None:
    """The setting is named."""
    with pytest.raises(ScorerError, match=r"vectorizer\.\w+.*could not be matched"):
        fit(TfidfVectorizer(**options), LogisticRegression())


def test_stop_words_of_single_words_need_no_list() -> None:
    """They are not in the vocabulary, so they do not count: probabilities are the same."""
    vectorizer, model = TfidfVectorizer(stop_words="english"), LogisticRegression()
    classifier = fit(vectorizer, model)
    expected = model.predict_proba(vectorizer.transform(TEXTS))[:, 1]
    np.testing.assert_array_equal(classifier.score(TEXTS), expected)


def test_other_sigmoids_are_refused() -> None:
    """An isotonic one is a table."""
    model = CalibratedClassifierCV(LinearSVC(), method="isotonic", cv=2)
    with pytest.raises(ScorerError, match=r"classifier\.method: expected 'sigmoid'"):
        fit(TfidfVectorizer(), model)


def test_other_classes_are_refused() -> None:
    """Which of them is the toxic one could not be told."""
    with pytest.raises(ScorerError, match=r"classes_: expected \[0, 1\], found \[1, 2\]"):
        fit(TfidfVectorizer(), LogisticRegression(), IS_TOXIC + 1)
