"""How well a trained scorer does on texts it has not seen, and how that is told.

Reads and writes what lies beside a scorer's own files: `training.json`, which holds what it was
trained on and its quality, and the README made of it. No text of any sample is in either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenshift.base.arrays import BoolArray, FloatArray
from eigenshift.base.auroc import estimate_auroc
from eigenshift.settings import TrainingSettings

TRAINING_NAME = "training.json"
CARD_NAME = "README.md"
CONFIDENCE = 0.95
VERDICT = 0.5


@dataclass(frozen=True)
class Quality:
    """How well a scorer does on texts it was not trained on.

    Attributes:
        n_training: Texts it was trained on.
        n_training_toxic: How many of them are toxic.
        n_heldout: Texts it was measured on.
        n_heldout_toxic: How many of them are toxic.
        auroc: Area under the ROC curve on held-out texts.
        auroc_low: Lower end of its interval (DeLong).
        auroc_high: Upper end.
        confidence: Level of the interval.
        toxic_share_found: Of the toxic held-out texts, above a probability of 0.5.
        nontoxic_share_called: Of the others, above 0.5.
    """

    n_training: int
    n_training_toxic: int
    n_heldout: int
    n_heldout_toxic: int
    auroc: float
    auroc_low: float
    auroc_high: float
    confidence: float
    toxic_share_found: float
    nontoxic_share_called: float


def judge_scores(scores: FloatArray, is_toxic: BoolArray, trained_on: BoolArray) -> Quality:
    """How well held-out texts are told apart.

    Args:
        scores: Their probabilities, shape (text,).
        is_toxic: Their labels, shape (text,).
        trained_on: Labels of the training texts, for their number.
    """
    auroc, low, high = estimate_auroc(scores, is_toxic, CONFIDENCE)
    is_called = scores > VERDICT
    return Quality(
        n_training=len(trained_on),
        n_training_toxic=int(trained_on.sum()),
        n_heldout=len(is_toxic),
        n_heldout_toxic=int(is_toxic.sum()),
        auroc=auroc,
        auroc_low=low,
        auroc_high=high,
        confidence=CONFIDENCE,
        toxic_share_found=float(is_called[is_toxic].mean()),
        nontoxic_share_called=float(is_called[~is_toxic].mean()),
    )


def describe_quality(quality: Quality) -> str:
    """Quality in a line, for people."""
    interval = f"[{quality.auroc_low:.3f}, {quality.auroc_high:.3f}]"
    texts = f"{quality.n_heldout:,} texts ({quality.n_heldout_toxic:,} toxic)"
    found, called = quality.toxic_share_found, quality.nontoxic_share_called
    return (
        f"held-out AUROC {quality.auroc:.3f} {interval} on {texts}; above {VERDICT:g} are "
        f"{found:.1%} of the toxic ones and {called:.1%} of the others"
    )


def read_quality(folder: Path) -> Quality | None:
    """The quality that a folder tells; None where it tells none, as of a fetched scorer."""
    try:
        document = json.loads((folder / TRAINING_NAME).read_text(encoding="utf-8"))
        return Quality(**document["quality"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_choices(folder: Path) -> TrainingSettings | None:
    """How a folder's scorer was trained; None where it tells none, as of a fetched scorer."""
    try:
        document = json.loads((folder / TRAINING_NAME).read_text(encoding="utf-8"))
        return TrainingSettings.model_validate(document["choices"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


CARD = """\
# A linear scorer of toxicity

Written by `eigenshift train-scorer`: {n_ngrams:,} n-grams ({ngrams}), weighed by a {method}. For a
run: `scorer: {{kind: linear, model: <this folder>}}`.

Measured on texts it was not trained on, drawn from the same sources by seed {seed}: {quality}.

| | |
|---|---|
| trained on | {n_training:,} texts ({n_training_toxic:,} toxic) of {sources} |
| digest of all texts and labels | `{texts_sha256}` |
| versions | EigenShift {eigenshift}, scikit-learn {sklearn} |

It knows the words of these sources and no others: of other domains, languages and spellings this
number says nothing. `vocabulary.json` holds n-grams of the texts, many of them offensive.
"""


def write_card(described: Mapping[str, Any], n_ngrams: int) -> str:
    """The README of a trained scorer's folder, as Markdown.

    Args:
        described: What `training.json` holds.
        n_ngrams: N-grams it weighs.
    """
    quality, choices = Quality(**described["quality"]), described["choices"]
    kinds = "words and characters" if choices["ngrams"] == "both" else choices["ngrams"]
    return CARD.format(
        n_ngrams=n_ngrams,
        ngrams=kinds,
        method="logistic regression" if choices["method"] == "logistic" else "calibrated ensemble",
        seed=choices["seed"],
        quality=describe_quality(quality),
        sources=", ".join(f"{item['name']} ({item['format']})" for item in described["sources"]),
        texts_sha256=described["texts_sha256"],
        eigenshift=described["eigenshift"],
        sklearn=described["scikit-learn"],
        n_training=quality.n_training,
        n_training_toxic=quality.n_training_toxic,
    )
