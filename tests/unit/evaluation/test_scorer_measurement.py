"""Scorers judged: AUROC as scikit-learn has it, intervals that cover, null where unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from eigenshift.base import schemas
from eigenshift.components.text_halves import is_calibration_text
from eigenshift.evaluation.headlines import summarise_quality
from eigenshift.evaluation.scorer_measurement import (
    JudgedTexts,
    LabelledText,
    MeasuredScorer,
    draw_texts,
    measure_quality,
    measure_scorers,
)
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.functional_cases import FunctionalCase
from tests.support.fake_scorer import WordScorer

KEYS = ("n", "n_toxic", "n_unscored", "recall", "false_alarm_share", "accuracy")


def make_samples(n_each: int = 40) -> pa.Table:
    """Two labelled data sets, one of them in two languages, and texts without a label."""
    rows = [
        {
            "sample_id": f"{dataset}-{label}-{number}",
            "dataset": dataset,
            "role": "labelled",
            "language": "zh" if dataset == "two" and number % 2 else "en",
            "is_toxic": label,
            "text": f"{dataset} {label} {number}",
        }
        for dataset in ("one", "two")
        for label in (True, False, None)
        for number in range(n_each)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.SAMPLES)


def test_texts_are_drawn_from_the_half_that_calibrates_nothing() -> None:
    """Half of them toxic in each data set; the order of the rows does not matter."""
    samples = make_samples()
    drawn = draw_texts(samples, 20, seed=3)
    turned = samples.take(list(range(samples.num_rows))[::-1])
    assert draw_texts(turned, 20, seed=3) == drawn
    assert draw_texts(samples, 20, seed=4) != drawn
    counts = {
        (subject, label): sum(x.subject == subject and x.is_toxic is label for x in drawn)
        for subject in ("one", "two")
        for label in (True, False)
    }
    assert set(counts.values()) == {10}
    assert not any(is_calibration_text(text.text.replace(" ", "-")) for text in drawn)


def test_of_a_trained_scorer_the_texts_are_those_it_was_not_trained_on() -> None:
    """Whether they calibrate anything does not matter then."""
    samples = make_samples()
    is_heldout = np.arange(samples.num_rows) % 3 == 0
    drawn = draw_texts(samples, 1000, seed=0, is_heldout=is_heldout)
    labelled = samples["is_toxic"].is_valid().to_pylist()
    allowed = {
        text
        for text, is_in, has_label in zip(
            samples["text"].to_pylist(), is_heldout, labelled, strict=True
        )
        if is_in and has_label
    }
    assert {text.text for text in drawn} == allowed


def test_the_auroc_is_scikit_learns_and_its_interval_covers() -> None:
    """Probabilities with ties; the interval of a known separation holds it in most draws."""
    generator = np.random.default_rng(0)
    n_covered = 0
    for _ in range(200):
        is_toxic = np.arange(120) < 50
        values = np.round(generator.normal(np.where(is_toxic, 1.0, 0.0), 1.0), 1)
        found = measure_quality(JudgedTexts(values, is_toxic, 0.5), 0.95)
        assert found["auroc"] == pytest.approx(roc_auc_score(is_toxic, values))
        n_covered += found["auroc_low"] <= 0.7602 <= found["auroc_high"]  # Phi(1 / sqrt 2)
    assert n_covered > 180


def test_shares_by_hand() -> None:
    """Four toxic texts of which one is unscored, three others; exactly the threshold is below."""
    values = np.array([0.9, 0.6, 0.5, np.nan, 0.7, 0.1, 0.2])
    is_toxic = np.array([True] * 4 + [False] * 3)
    found = measure_quality(JudgedTexts(values, is_toxic, 0.5), 0.95)
    assert {key: found[key] for key in KEYS} == pytest.approx(
        {
            "n": 6,
            "n_toxic": 3,
            "n_unscored": 1,
            "recall": 2 / 3,
            "false_alarm_share": 1 / 3,
            "accuracy": 4 / 6,
        }
    )
    assert found["auroc"] == pytest.approx(7 / 9)
    assert found["accuracy_low"] < 4 / 6 < found["accuracy_high"]


@pytest.mark.parametrize(
    ("values", "is_toxic", "reason"),
    [
        ([0.9, 0.1], [True, True], "fewer than two texts of a label"),
        ([np.nan, np.nan], [True, False], "no text was scored"),
    ],
)
def test_what_is_undefined_is_null_with_a_reason(
    values: list[float], is_toxic: list[bool], reason: str
) -> None:
    """Never one half."""
    found = measure_quality(JudgedTexts(np.array(values), np.array(is_toxic), 0.5), 0.95)
    assert (found.get("auroc"), found["reason"]) == (None, reason)


def measure(workspace: Workspace, *scorers: Any) -> list[dict[str, Any]]:
    """Two data sets in two languages and two functionalities, read back."""
    texts = [
        LabelledText(text, is_toxic, subject, language)
        for subject, language in (("one", "en"), ("two", "zh"))
        for text, is_toxic in (
            ("a zorbfool", True),
            ("呆灯瓜", True),
            ("a kettle", False),
            ("a zorbfool of kettles", False),
            (" ", False),
        )
    ]
    cases = [
        FunctionalCase("zorbfool", True, "plain"),
        FunctionalCase("no zorbfool", False, "negated"),
    ]
    measured = [MeasuredScorer(scorer, 0.5, texts) for scorer in scorers]
    measure_scorers(measured, cases, 0.95, workspace)
    return pq.read_table(workspace.path("scorer_quality.parquet")).to_pylist()


def test_every_basis_has_its_whole_and_its_parts(workspace: Workspace) -> None:
    """Data sets, languages and functionalities, where there are several."""
    rows = measure(workspace, WordScorer())
    table = {(row["basis"], row["subject"], row["language"]): row for row in rows}
    assert list(table) == [
        ("labelled", "all", "all"),
        ("labelled", "one", "all"),
        ("labelled", "two", "all"),
        ("labelled", "all", "en"),
        ("labelled", "all", "zh"),
        ("functional", "all", "all"),
        ("functional", "negated", "all"),
        ("functional", "plain", "all"),
    ]
    whole = table["labelled", "all", "all"]
    assert (whole["n"], whole["n_toxic"], whole["n_unscored"]) == (8, 4, 2)
    assert (whole["recall"], whole["false_alarm_share"], whole["auroc"]) == (1.0, 0.5, 0.75)
    assert table["functional", "negated", "all"]["accuracy"] == 0.0
    assert table["functional", "plain", "all"]["accuracy"] == 1.0
    assert table["functional", "plain", "all"]["auroc"] is None


def test_the_headline_is_the_deciding_scorers(workspace: Workspace) -> None:
    """Of all labelled texts; none where none was judged."""
    second = WordScorer(insults=("kettle",))
    second.name = "second"
    rows = measure(workspace, second, WordScorer())
    assert summarise_quality(rows, "words")["scorer_auroc"]["value"] == 0.75
    assert summarise_quality(rows, "second")["scorer_auroc"]["value"] < 0.5
    assert summarise_quality([], "words") == {}
