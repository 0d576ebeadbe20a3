"""A classifier out of scikit-learn's fitted objects, or of anything with the same attributes.

Reads attributes only, so that objects taken out of a file without scikit-learn will do. Whatever
would make the scores differ from scikit-learn's is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eigenshift.base.errors import ScorerError
from eigenshift.ngrams.analysis import WORD, Analysis, Unit
from eigenshift.ngrams.classifier import Block, Member, NgramClassifier

UNITS = {"word": Unit.words, "char_wb": Unit.characters}
REQUIRED = {
    "strip_accents": None,
    "preprocessor": None,
    "tokenizer": None,
    "binary": False,
    "norm": "l2",
    "vocabulary": None,
    "token_pattern": WORD.pattern,
}
"""Settings of a vectorizer that have to be as here."""


def convert_fitted(vectorizers: Sequence[Any], classifier: Any) -> NgramClassifier:
    """Make a classifier from fitted objects.

    Args:
        vectorizers: `TfidfVectorizer`s, whose columns stand side by side.
        classifier: A binary `LogisticRegression`, or `CalibratedClassifierCV` with sigmoids over
            models with `coef_` and `intercept_`; its second class is the toxic one.

    Raises:
        ScorerError: It does something that is not computed here.
    """
    return NgramClassifier(
        [_convert_vectorizer(vectorizer) for vectorizer in vectorizers],
        list(_convert_members(classifier)),
    )


def _convert_vectorizer(vectorizer: Any) -> Block:
    for name, expected in REQUIRED.items():
        _require(f"vectorizer.{name}", getattr(vectorizer, name), (expected,))
    _require("vectorizer.analyzer", vectorizer.analyzer, tuple(UNITS))
    minimum, maximum = vectorizer.ngram_range
    if vectorizer.stop_words is not None:
        # left out of the vocabulary, they are out of single words; runs of words would close up
        _require("vectorizer.ngram_range with stop words", (minimum, maximum), ((1, 1),))
    _require("vectorizer.use_idf", vectorizer.use_idf, (True,))
    idf = np.asarray(vectorizer._tfidf.idf_)
    _require("vectorizer.idf_.dtype", str(idf.dtype), ("float64",))
    numbers = vectorizer.vocabulary_
    vocabulary = sorted(numbers, key=lambda ngram: int(numbers[ngram]))
    analysis = Analysis(UNITS[vectorizer.analyzer], minimum, maximum, vectorizer.lowercase)
    return Block(analysis, vocabulary, idf, vectorizer.sublinear_tf)


def _convert_members(classifier: Any) -> Iterator[Member]:
    if not hasattr(classifier, "calibrated_classifiers_"):
        yield Member(*_read_linear(classifier))
        return
    _require("classifier.method", classifier.method, ("sigmoid",))
    for part in classifier.calibrated_classifiers_:
        (calibrator,) = part.calibrators
        yield Member(*_read_linear(part.estimator), float(calibrator.a_), float(calibrator.b_))


def _read_linear(model: Any) -> tuple[Any, float]:
    coefficients = np.asarray(model.coef_, dtype=np.float64)
    _require("classifier.classes_", [int(label) for label in model.classes_], ([0, 1],))
    return coefficients[0].copy(), float(np.ravel(model.intercept_)[0])


def _require(place: str, found: Any, expected: Sequence[Any]) -> None:
    if found not in expected:
        shown = " or ".join(repr(value) for value in expected)
        raise ScorerError(
            f"{place}: expected {shown}, found {found!r}. Its scores could not be matched."
        )
