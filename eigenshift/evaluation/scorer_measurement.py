"""How well scorers tell toxic text from other text: what every toxicity rate rests on.

Reads labelled samples of the run and functional cases; writes `scorer_quality.parquet`
(`schemas.SCORER_QUALITY`). Of a linear scorer trained by this library the samples are those it was
not trained on. Of others this is not known, and the samples are of the half that calibrates
nothing: a classifier trained on the data set it is judged on looks better than it is on others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.stats

from eigenshift.base import schemas
from eigenshift.base.arrays import BoolArray, FloatArray
from eigenshift.base.auroc import estimate_auroc
from eigenshift.components.text_halves import is_calibration_text
from eigenshift.evaluation.headlines import ALL, FUNCTIONAL, LABELLED
from eigenshift.evaluation.stages import QualityInputs, QualityKey
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.functional_cases import FunctionalCase, read_cases
from eigenshift.toxicity.scorer_training import find_heldout
from eigenshift.toxicity.scorers.interface import Scorer
from eigenshift.toxicity.scorers.loading import open_scorer

MIN_OF_EACH = 2
"""Texts of each label that an AUROC needs for its interval."""
TOO_FEW = "fewer than two texts of a label"
NONE_SCORED = "no text was scored"


@dataclass(frozen=True)
class LabelledText:
    """A text with a label, and what it counts for.

    Attributes:
        text: May be offensive.
        is_toxic: Its label.
        subject: Data set, or functionality.
        language: Language code; of functional cases 'all'.
    """

    text: str
    is_toxic: bool
    subject: str
    language: str = ALL


@dataclass(frozen=True)
class JudgedTexts:
    """What one scorer said of texts: arrays of shape (text,).

    Attributes:
        probabilities: NaN where unscored.
        is_toxic: Labels.
        toxic_threshold: Above this probability the scorer calls a text toxic.
    """

    probabilities: FloatArray
    is_toxic: BoolArray
    toxic_threshold: float

    def keep(self, members: Any) -> JudgedTexts:
        """Those of a mask."""
        return JudgedTexts(
            self.probabilities[members], self.is_toxic[members], self.toxic_threshold
        )


def draw_texts(
    samples: pa.Table, n_texts: int, seed: int, is_heldout: BoolArray | None = None
) -> list[LabelledText]:
    """Draw texts of each data set, half of them toxic, the same whatever the order of the files.

    Args:
        samples: `schemas.SAMPLES` rows; those without a label are left out.
        n_texts: At most so many of a data set.
        seed: Of the draw.
        is_heldout: Which of the samples may be drawn, shape (sample,); None: those that calibrate
            nothing.
    """
    columns = ["sample_id", "dataset", "language", "is_toxic", "text"]
    found = samples.select(columns).to_pylist()
    if is_heldout is None:
        is_heldout = np.array([not is_calibration_text(row["sample_id"]) for row in found])
    rows = [
        row
        for row, may_be_drawn in zip(found, is_heldout.tolist(), strict=True)
        if may_be_drawn and row["is_toxic"] is not None
    ]
    rows.sort(
        key=lambda row: hashlib.sha256(f"quality:{seed}:{row['sample_id']}".encode()).digest()
    )
    drawn: list[LabelledText] = []
    for dataset in sorted({row["dataset"] for row in rows}):
        for is_toxic in (True, False):
            chosen = [
                LabelledText(row["text"], is_toxic, dataset, row["language"])
                for row in rows
                if row["dataset"] == dataset and row["is_toxic"] is is_toxic
            ]
            drawn += chosen[: n_texts // 2]
    return drawn


@dataclass(frozen=True)
class MeasuredScorer:
    """A scorer that is to be measured.

    Attributes:
        scorer: The scorer.
        toxic_threshold: Above this probability it calls a text toxic.
        texts: Labelled ones that it judges.
    """

    scorer: Scorer
    toxic_threshold: float
    texts: Sequence[LabelledText]


def measure_scorers(
    scorers: Sequence[MeasuredScorer],
    cases: Sequence[FunctionalCase],
    confidence: float,
    workspace: Workspace,
) -> None:
    """Have every scorer judge its texts and all cases.

    Args:
        scorers: What is measured, on what.
        cases: Functional ones.
        confidence: Level of the intervals.
        workspace: Receives the table.
    """
    functional = [LabelledText(case.text, case.is_toxic, case.functionality) for case in cases]
    rows: list[dict[str, Any]] = []
    for item in scorers:
        for basis, found in ((LABELLED, item.texts), (FUNCTIONAL, functional)):
            if found:
                rows += _judge_basis(item, basis, found, confidence)
    workspace.write_rows(tables.SCORER_QUALITY.file, rows, schemas.SCORER_QUALITY)
    workspace.facts = {
        "scorers": [item.scorer.name for item in scorers],
        "n_labelled": sum(len(item.texts) for item in scorers),
        "n_cases": len(cases),
    }


def measure_quality(judged: JudgedTexts, confidence: float) -> dict[str, Any]:
    """The columns of `schemas.SCORER_QUALITY` from `n` on; null, with a reason, where undefined."""
    is_scored = ~np.isnan(judged.probabilities)
    n, n_unscored = int(is_scored.sum()), int((~is_scored).sum())
    scores, is_toxic = judged.probabilities[is_scored], judged.is_toxic[is_scored]
    n_toxic = int(is_toxic.sum())
    found: dict[str, Any] = {"n": n, "n_toxic": n_toxic, "n_unscored": n_unscored}
    if not n:
        return {**found, "reason": NONE_SCORED}
    is_called = scores > judged.toxic_threshold
    n_right = int((is_called == is_toxic).sum())
    accuracy = scipy.stats.binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    found |= {
        "accuracy": n_right / n,
        "accuracy_low": float(accuracy.low),
        "accuracy_high": float(accuracy.high),
        "recall": float(is_called[is_toxic].mean()) if n_toxic else None,
        "false_alarm_share": float(is_called[~is_toxic].mean()) if n_toxic < n else None,
    }
    if min(n_toxic, n - n_toxic) < MIN_OF_EACH:
        return {**found, "reason": TOO_FEW}
    auroc, low, high = estimate_auroc(scores, is_toxic, confidence)
    return {**found, "auroc": auroc, "auroc_low": low, "auroc_high": high, "reason": None}


def _judge_basis(
    item: MeasuredScorer, basis: str, texts: Sequence[LabelledText], confidence: float
) -> Iterator[dict[str, Any]]:
    """Rows of all texts, then of each subject and each language if there are several."""
    scores = item.scorer.score([text.text for text in texts])
    judged = JudgedTexts(
        np.array([np.nan if s.probability is None else s.probability for s in scores]),
        np.array([text.is_toxic for text in texts]),
        item.toxic_threshold,
    )
    for subject, language, members in _list_parts(texts):
        yield {
            "scorer": item.scorer.name,
            "basis": basis,
            "subject": subject,
            "language": language,
            **measure_quality(judged.keep(members), confidence),
        }


def _list_parts(texts: Sequence[LabelledText]) -> Iterator[tuple[str, str, Any]]:
    yield ALL, ALL, np.ones(len(texts), dtype=bool)
    parts: tuple[Callable[[LabelledText], str], ...] = (
        lambda text: text.subject,
        lambda text: text.language,
    )
    for place, find in enumerate(parts):
        values = np.array([find(text) for text in texts], dtype=object)
        different = sorted(set(values))
        if len(different) > 1:
            for value in different:
                subject, language = (value, ALL) if place == 0 else (ALL, value)
                yield subject, language, values == value


def carry_out(inputs: QualityInputs, key: QualityKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `measure_scorers`."""
    samples = bench.artifacts.read_files(inputs.samples) if key.n_drawn else None
    measured = []
    for classifier, judged in zip(inputs.scorers, key.scorers, strict=True):
        settings = classifier.settings.model_copy(update={"name": judged.scorer})
        texts: list[LabelledText] = []
        if samples is not None:
            is_heldout = find_heldout(settings, samples["text"].to_pylist())
            texts = draw_texts(samples, key.n_drawn, key.seed, is_heldout)
        scorer = open_scorer(settings, bench.execution)
        measured.append(MeasuredScorer(scorer, judged.toxic_threshold, texts))
    cases = [] if inputs.cases is None else read_cases(inputs.cases.uri)
    measure_scorers(measured, cases, key.confidence, workspace)
