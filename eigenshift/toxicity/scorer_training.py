"""Train a linear scorer on labelled texts, measure it on texts it has not seen, write its folder.

Reads the labelled sources of a run, as the run itself would: the same rows are rejected, of equal
texts the first is kept, contradictory ones are left out. Fits with scikit-learn (an extra); what is
written needs it no more, and is measured as it is written. Equal texts and equal choices give equal
bytes on one machine. How such a scorer judges texts is `ngrams/`'s and `scorers/linear.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eigenshift import __version__
from eigenshift.base.arrays import BoolArray, FloatArray
from eigenshift.base.errors import DatasetError, ScorerError, SettingsError
from eigenshift.datasets.ingestion import FileRecords, combine_records
from eigenshift.datasets.reading import list_sources, read_file
from eigenshift.datasets.screening import digest_text
from eigenshift.ngrams import NgramClassifier, identify_classifier, write_classifier
from eigenshift.ngrams.fitted import convert_fitted
from eigenshift.settings import (
    FittingMethod,
    IngestionSettings,
    NgramChoice,
    PlainScorerSettings,
    ScorerKind,
    SourceSettings,
    TrainingSettings,
)
from eigenshift.stages import tables
from eigenshift.store.output_folder import check_vacant, writing_folder
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.source_files import fetch_path
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.scorer_quality import (
    CARD_NAME,
    TRAINING_NAME,
    Quality,
    judge_scores,
    read_choices,
    write_card,
)

logger = logging.getLogger(__name__)

EXTRA = "linear-scorer"
MIN_TEXTS_OF_A_CLASS = 20
"""Of training texts, and of held-out ones: fewer say nothing."""
WORD_LENGTHS, CHARACTER_LENGTHS = (1, 2), (2, 5)
LOGISTIC_STRENGTH, LINEAR_STRENGTH = 4.0, 0.5
"""Inverse strengths of regularisation (docs/decisions/0057-linear-scorers.md)."""
N_FOLDS = 5
COLUMNS = ["text", "is_toxic"]
MAX_DIFFERENCE = 1e-9
"""Between our probabilities and scikit-learn's; they should be equal."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and whether they are toxic, shape (text,)."""

    texts: Sequence[str]
    is_toxic: BoolArray

    def take(self, chosen: BoolArray) -> LabelledTexts:
        """Some of them, by a mask of shape (text,)."""
        texts = [text for text, is_in in zip(self.texts, chosen, strict=True) if is_in]
        return LabelledTexts(texts, self.is_toxic[chosen])


@dataclass(frozen=True)
class TrainedScorer:
    """A scorer's folder.

    Attributes:
        folder: Where it is.
        digest: Of what decides its scores.
        n_ngrams: N-grams it weighs.
        quality: How well it does.
    """

    folder: Path
    digest: str
    n_ngrams: int
    quality: Quality


def train_scorer(
    sources: Sequence[SourceSettings],
    ingestion: IngestionSettings,
    choices: TrainingSettings,
    out: Path,
) -> TrainedScorer:
    """Train a scorer and write its folder, whole or not at all.

    Args:
        sources: Labelled ones.
        ingestion: How texts are checked.
        choices: What is fitted, and what is held out.
        out: New or empty folder.

    Raises:
        SettingsError: `out` holds something or cannot be written, or scikit-learn is missing.
        DatasetError: A source cannot be read, or there are too few texts of a class.
        ScorerError: What was fitted is not what would be written.
    """
    check_vacant(out)  # this and the library before the work, which would be for nothing
    import_sklearn()
    texts = read_labelled(sources, ingestion)
    is_heldout = draw_heldout(texts.texts, choices.held_out_share, choices.seed)
    training, heldout = texts.take(~is_heldout), texts.take(is_heldout)
    for part, name in ((training, "training"), (heldout, "held-out")):
        _require_both_classes(part, name)
    logger.info("training begins: texts=%d held_out=%d", len(training.texts), len(heldout.texts))
    classifier, expected = fit_classifier(training, heldout, choices)
    scores = classifier.score(heldout.texts)
    _require_equal(scores, expected)
    quality = judge_scores(scores, heldout.is_toxic, training.is_toxic)
    with writing_folder(out) as folder:
        write_classifier(classifier, folder)
        described = _describe_training(sources, texts, choices, quality)
        (folder / TRAINING_NAME).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
        (folder / CARD_NAME).write_text(write_card(described, classifier.n_ngrams), "utf-8")
    return TrainedScorer(out, identify_classifier(out), classifier.n_ngrams, quality)


def import_sklearn() -> Any:
    """The library that fits.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        import sklearn
    except ImportError as error:
        raise SettingsError(
            "train-scorer: expected the package scikit-learn, which fits the scorer, found none. "
            f"It is in an extra. pip install 'eigenshift[{EXTRA}]' adds it; a run with the trained "
            "scorer does not need it."
        ) from error
    return sklearn


def read_labelled(sources: Sequence[SourceSettings], ingestion: IngestionSettings) -> LabelledTexts:
    """Read the texts that have a label, over all sources together.

    Raises:
        DatasetError: A file cannot be read, or none has a usable text.
    """
    files = [file for source in sources for file in list_sources(source)]
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        records = []
        for number, file in enumerate(files):
            workspace = _make_workspace(Path(scratch) / f"file-{number}")
            read_file(
                file,
                ingestion.max_characters,
                workspace,
                max_rejected_share=ingestion.max_rejected_share,
                max_unknown_labels=ingestion.max_unknown_labels,
            )
            names = (tables.RECORDS, tables.REJECTED_ROWS, tables.SOURCE_FILES)
            records.append(FileRecords(*(workspace.path(table.file) for table in names)))
        combined = _make_workspace(Path(scratch) / "samples")
        combine_records(records, ingestion.rows_per_shard, combined)
        shards = sorted(combined.folder.glob(tables.SAMPLES.file))
        samples = pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in shards])
    samples = samples.filter(samples["is_toxic"].is_valid())
    labels = np.array(samples["is_toxic"].to_pylist(), dtype=bool)
    return LabelledTexts(samples["text"].to_pylist(), labels)


def _make_workspace(folder: Path) -> Workspace:
    folder.mkdir()
    return Workspace(folder)


def draw_heldout(texts: Sequence[str], share: float, seed: int) -> BoolArray:
    """Which texts are held out, shape (text,): decided by each text itself and the seed.

    So a text stays on its side when others are added, and equal texts are on one side.
    """
    bound = share * 2.0**64

    def draw(text: str) -> int:
        digest = hashlib.sha256(f"{seed}:{digest_text(text)}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    return np.array([draw(text) < bound for text in texts], dtype=bool)


def find_heldout(scorer: PlainScorerSettings, texts: Sequence[str]) -> BoolArray | None:
    """Which texts a scorer was not trained on, shape (text,); None where it does not tell.

    A linear scorer's folder tells how it was trained; texts it never met are on one side or the
    other as well.
    """
    if scorer.kind is not ScorerKind.linear:
        return None
    choices = read_choices(fetch_path(scorer.model or ""))
    if choices is None:
        return None
    return draw_heldout(texts, choices.held_out_share, choices.seed)


def fit_classifier(
    training: LabelledTexts, heldout: LabelledTexts, choices: TrainingSettings
) -> tuple[NgramClassifier, FloatArray]:
    """Fit with scikit-learn.

    Returns:
        What was fitted, and scikit-learn's own probabilities of the held-out texts.

    Raises:
        DatasetError: No n-gram is in several texts.
    """
    from scipy import sparse

    vectorizers = _make_vectorizers(choices)
    try:
        parts = [item.fit_transform(training.texts) for item in vectorizers]
    except ValueError as error:  # no n-gram is left; the error says no more than that
        raise DatasetError(
            f"train-scorer: expected {choices.ngrams.value} that occur in {choices.min_texts} "
            "texts or more, found none. The texts may be of a language without spaces, or too "
            "few. Choose --ngrams characters, or give more of them."
        ) from error
    rows = sparse.hstack(parts, format="csr")
    model = _make_model(choices).fit(rows, training.is_toxic)
    classifier = convert_fitted(vectorizers, model)
    unseen = sparse.hstack([item.transform(heldout.texts) for item in vectorizers], format="csr")
    return classifier, np.asarray(model.predict_proba(unseen)[:, 1])


def _make_vectorizers(choices: TrainingSettings) -> list[Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    kinds = [
        (NgramChoice.words, "word", WORD_LENGTHS),
        (NgramChoice.characters, "char_wb", CHARACTER_LENGTHS),
    ]
    return [
        TfidfVectorizer(
            analyzer=analyzer,
            ngram_range=lengths,
            min_df=choices.min_texts,
            max_features=choices.max_ngrams,
            sublinear_tf=True,
        )
        for choice, analyzer, lengths in kinds
        if choices.ngrams in (choice, NgramChoice.both)
    ]


def _make_model(choices: TrainingSettings) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import LinearSVC

    if choices.method is FittingMethod.logistic:
        return LogisticRegression(C=LOGISTIC_STRENGTH, max_iter=1000)
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=choices.seed)
    return CalibratedClassifierCV(LinearSVC(C=LINEAR_STRENGTH, dual=False), cv=folds)


def _require_both_classes(part: LabelledTexts, name: str) -> None:
    n_toxic = int(part.is_toxic.sum())
    n_other = len(part.texts) - n_toxic
    if min(n_toxic, n_other) < MIN_TEXTS_OF_A_CLASS:
        raise DatasetError(
            f"train-scorer: expected at least {MIN_TEXTS_OF_A_CLASS} toxic and as many other texts "
            f"among the {name} ones, found {n_toxic} toxic and {n_other} others. Give more "
            "labelled texts, or another --held-out."
        )


def _require_equal(scores: FloatArray, expected: FloatArray) -> None:
    difference = float(np.abs(scores - expected).max())
    if not difference <= MAX_DIFFERENCE:
        raise ScorerError(
            "train-scorer: expected the probabilities that scikit-learn gives, found a difference "
            f"of {difference:.2e}. Its release computes otherwise than those known here; nothing "
            "was written. Install the version that constraints.txt names."
        )


def _describe_training(
    sources: Sequence[SourceSettings],
    texts: LabelledTexts,
    choices: TrainingSettings,
    quality: Quality,
) -> dict[str, Any]:
    """What it was made from, without texts and without places of this machine."""
    return {
        "eigenshift": __version__,
        "scikit-learn": import_sklearn().__version__,
        "choices": choices.model_dump(mode="json"),
        "sources": [{"name": item.name, "format": item.format.value} for item in sources],
        "texts_sha256": _digest_labelled(texts),
        "quality": asdict(quality),
    }


def _digest_labelled(texts: LabelledTexts) -> str:
    """Of the texts and their labels, in whatever order they were read."""
    pairs = zip(texts.texts, texts.is_toxic.tolist(), strict=True)
    lines = sorted(f"{digest_text(text):016x} {int(label)}" for text, label in pairs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
