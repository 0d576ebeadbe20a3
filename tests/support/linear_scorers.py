"""Labelled made-up texts, and scikit-learn's own pipelines fitted on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from eigenshift.ngrams import NgramClassifier, write_classifier
from eigenshift.ngrams.fitted import convert_fitted

INSULTS = ("zorbfool", "glimpnit", "Zorb-brained", "呆灯瓜")
WORDS = (
    *(
        "the",
        "Garden",
        "is",
        "quiet",
        "a",
        "I",
        "kettle",
        "of",
        "42",
        "it's",
        "ﬁne",
        "ÉTÉ",
        "naïve",
    ),
    *("İstanbul", "ΟΔΟΣ", "茶杯很安静", "火车", "x_y", "half-open", "WINDOW", "river", "river"),
)
SPACES = (" ", " ", " ", "  ", "\t", "\n\n", "\u00a0", ", ", ". ", "! ", "，")
ODD_TEXTS = (
    "",
    " ",
    "\t\n",
    "a",
    "İ",
    "İİ zorbfool İ",
    "ΑΣ ΟΔΟΣ zorbfool",
    "!?",
    "zorbfool" * 9,
    "呆灯瓜呆灯瓜",
    "no word of it known: qqqq",
)


def make_texts(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts with repeated words, odd letters and spaces; toxic is a text with an insult.

    Returns:
        Texts, and whether they are toxic, shape (text,).
    """
    draw = random.Random(seed)
    texts, is_toxic = [], []
    for _ in range(n):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 30))]
        label = draw.random() < 0.4
        if label:
            for _ in range(draw.randint(1, 3)):
                words.insert(draw.randint(0, len(words)), draw.choice(INSULTS))
        texts.append("".join(word + draw.choice(SPACES) for word in words))
        is_toxic.append(label)
    return texts, np.array(is_toxic)


def fit_pipeline(
    texts: Sequence[str],
    is_toxic: np.ndarray,
    kinds: Sequence[tuple[str, tuple[int, int]]] = (("word", (1, 2)), ("char_wb", (2, 4))),
    *,
    is_calibrated: bool = False,
    **options: Any,
) -> Any:
    """A pipeline of scikit-learn: a union of TF-IDFs, then a linear model."""
    vectorizers = [
        TfidfVectorizer(analyzer=analyzer, ngram_range=lengths, **options)
        for analyzer, lengths in kinds
    ]
    model = CalibratedClassifierCV(LinearSVC(), cv=3) if is_calibrated else LogisticRegression(C=9)
    return make_pipeline(make_union(*vectorizers), model).fit(texts, is_toxic)


def convert(pipeline: Any) -> NgramClassifier:
    """Ours, from a pipeline of theirs."""
    union, model = pipeline[0], pipeline[1]
    return convert_fitted([item for _, item in union.transformer_list], model)


def make_folder(folder: Path, *, is_calibrated: bool = False) -> Path:
    """Write the folder of a small scorer that knows the made-up insults."""
    pipeline = fit_pipeline(*make_texts(300), is_calibrated=is_calibrated)
    folder.mkdir()
    write_classifier(convert(pipeline), folder)
    return folder
