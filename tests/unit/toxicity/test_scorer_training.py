"""A scorer trained on labelled files: measured on what it has not seen, each time the same."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eigenshift.base.errors import DatasetError, ScorerError, SettingsError
from eigenshift.ngrams import read_classifier
from eigenshift.settings import (
    IngestionSettings,
    ScorerSettings,
    SourceSettings,
    TrainingSettings,
)
from eigenshift.toxicity import scorer_training
from eigenshift.toxicity.scorer_quality import TRAINING_NAME, describe_quality, read_quality
from eigenshift.toxicity.scorer_training import (
    TrainedScorer,
    draw_heldout,
    find_heldout,
    read_labelled,
    train_scorer,
)
from flows.command_line import main
from tests.support.linear_scorers import make_texts

N_TEXTS = 500
PLAIN = IngestionSettings()


def write_source(path: Path, texts: list[str], is_toxic: np.ndarray) -> SourceSettings:
    """A file in Jigsaw's schema, and the source that names it."""
    columns = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "comment_text", *columns])
        for number, (text, label) in enumerate(zip(texts, is_toxic, strict=True)):
            writer.writerow([f"r{number}", text, int(label), 0, 0, 0, 0, 0])
    return SourceSettings(name=path.stem, format="jigsaw", uri=str(path))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceSettings:
    """Made-up comments; some labels are wrong, so that no scorer is perfect."""
    texts, is_toxic = make_texts(N_TEXTS, seed=7)
    wrong = np.random.default_rng(0).random(N_TEXTS) < 0.1
    return write_source(tmp_path_factory.mktemp("data") / "made-up.csv", texts, is_toxic ^ wrong)


@pytest.fixture(scope="module")
def trained(source: SourceSettings, tmp_path_factory: pytest.TempPathFactory) -> TrainedScorer:
    """A scorer with default choices."""
    out = tmp_path_factory.mktemp("trained") / "scorer"
    return train_scorer([source], PLAIN, TrainingSettings(), out)


def test_the_quality_is_that_of_the_folder_on_texts_it_has_not_seen(
    source: SourceSettings, trained: TrainedScorer
) -> None:
    """Recomputed from the folder and the file by scikit-learn."""
    texts = read_labelled([source], PLAIN)
    is_heldout = draw_heldout(texts.texts, 0.2, 0)
    heldout = texts.take(is_heldout)
    scores = read_classifier(trained.folder).score(heldout.texts)
    quality = trained.quality
    assert quality.auroc == pytest.approx(roc_auc_score(heldout.is_toxic, scores), abs=1e-12)
    assert quality.auroc_low < quality.auroc < quality.auroc_high
    assert 0.75 < quality.auroc < 1
    assert quality.n_heldout == len(heldout.texts) == is_heldout.sum()
    assert quality.n_training + quality.n_heldout == len(texts.texts)
    assert quality.n_training_toxic + quality.n_heldout_toxic == texts.is_toxic.sum()
    assert quality.toxic_share_found == (scores[heldout.is_toxic] > 0.5).mean()
    assert quality.nontoxic_share_called == (scores[~heldout.is_toxic] > 0.5).mean()


def test_a_folder_tells_which_texts_it_was_not_trained_on(
    source: SourceSettings, trained: TrainedScorer, tmp_path: Path
) -> None:
    """As many as it was measured on; of a folder that tells nothing, and of other kinds, none."""
    texts = read_labelled([source], IngestionSettings()).texts
    scorer = ScorerSettings.model_validate({"kind": "linear", "model": str(trained.folder)})
    is_heldout = find_heldout(scorer, texts)
    assert is_heldout is not None
    assert int(is_heldout.sum()) == trained.quality.n_heldout
    fetched = scorer.model_copy(update={"model": str(tmp_path)})
    assert find_heldout(fetched, texts) is None
    assert find_heldout(ScorerSettings(), texts) is None


def test_the_folder_tells_its_quality_and_no_text(
    source: SourceSettings, trained: TrainedScorer
) -> None:
    """In its record and its README; neither names a place of this machine."""
    record = json.loads((trained.folder / TRAINING_NAME).read_text())
    card = (trained.folder / "README.md").read_text()
    assert read_quality(trained.folder) == trained.quality
    assert record["sources"] == [{"name": "made-up", "format": "jigsaw"}]
    assert f"AUROC {trained.quality.auroc:.3f}" in card
    for text in (json.dumps(record), card):
        assert "zorb" not in text
        assert str(Path(source.uri).parent) not in text


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"ngrams": "words"},
        {"ngrams": "characters", "seed": 3},
        {"method": "calibrated", "ngrams": "words"},
    ],
)
def test_the_same_texts_and_choices_give_the_same_bytes(
    source: SourceSettings, tmp_path: Path, choices: dict[str, str]
) -> None:
    """Whatever is fitted."""
    for name in ("one", "again"):
        train_scorer([source], PLAIN, TrainingSettings(**choices), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_another_seed_holds_out_other_texts(source: SourceSettings) -> None:
    """About as many, and a text stays on its side when others are added."""
    texts = read_labelled([source], PLAIN).texts
    one, other = draw_heldout(texts, 0.2, 0), draw_heldout(texts, 0.2, 1)
    assert 0.1 < (one & other).sum() / one.sum() < 0.35
    assert one.mean() == pytest.approx(0.2, abs=0.06)
    np.testing.assert_array_equal(draw_heldout([*texts, "more"], 0.2, 0)[:-1], one)
    assert draw_heldout(["A  Garden", "a garden"], 0.5, 0).tolist() in ([0, 0], [1, 1])


def test_repeats_over_all_files_count_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    """Else a text could be trained on and measured on."""
    one = write_source(tmp_path / "one.csv", ["a kettle", "a garden", "a"], np.array([0, 1, 0]))
    two = write_source(tmp_path / "two.csv", ["A  kettle", "a garden", "b"], np.array([0, 0, 1]))
    found = read_labelled([one, two], PLAIN)
    assert list(found.texts) == ["a kettle", "a", "b"]
    assert found.is_toxic.tolist() == [False, False, True]


def test_too_few_texts_of_a_class_are_refused(tmp_path: Path) -> None:
    """With both numbers; nothing is written."""
    texts, _ = make_texts(100)
    source = write_source(tmp_path / "few.csv", texts, np.arange(100) < 10)
    with pytest.raises(DatasetError, match=r"at least 20 toxic .*, found \d+ toxic and \d+ others"):
        train_scorer([source], PLAIN, TrainingSettings(), tmp_path / "scorer")
    assert not (tmp_path / "scorer").exists()


def test_texts_without_a_common_n_gram_are_refused(tmp_path: Path) -> None:
    """Sentences of a language without spaces are each a word of their own."""
    texts = [f"火车{number}呆" for number in range(300)]
    source = write_source(tmp_path / "zh.csv", texts, np.arange(300) % 2 == 0)
    with pytest.raises(DatasetError, match=r"expected words that occur in 2 texts.*characters"):
        train_scorer([source], PLAIN, TrainingSettings(ngrams="words"), tmp_path / "scorer")
    choices = TrainingSettings(ngrams="characters")
    assert train_scorer([source], PLAIN, choices, tmp_path / "scorer").n_ngrams > 10


def test_a_folder_with_content_is_refused_before_the_work(
    source: SourceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays."""
    monkeypatch.setattr(scorer_training, "read_labelled", None)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="new or empty folder"):
        train_scorer([source], PLAIN, TrainingSettings(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_the_library_the_extra_is_named(
    source: SourceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that a run does not need it."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SettingsError, match=r"scikit-learn.*eigenshift\[linear-scorer\]"):
        train_scorer([source], PLAIN, TrainingSettings(), tmp_path / "scorer")


def test_scores_other_than_scikit_learns_are_not_written(
    source: SourceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a release of it compute otherwise."""
    real = scorer_training.fit_classifier

    def fit(*given: object) -> object:
        classifier, expected = real(*given)  # type: ignore[arg-type]
        return classifier, expected + 1e-6

    monkeypatch.setattr(scorer_training, "fit_classifier", fit)
    with pytest.raises(ScorerError, match="a difference of 1"):
        train_scorer([source], PLAIN, TrainingSettings(), tmp_path / "scorer")
    assert not (tmp_path / "scorer").exists()


def test_the_command_trains_on_files_or_on_a_runs_own_sources(
    source: SourceSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints what it reached; as JSON where asked; a source that does not fit is told."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["train-scorer", *words])
        printed = capsys.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    given = f"{{format: jigsaw, uri: {source.uri}}}"
    out = tmp_path / "scorer"
    code, text, _ = run("--source", given, "--out", str(out), "--ngrams", "words")
    assert code == 0
    quality = read_quality(out)
    assert quality is not None
    assert describe_quality(quality) in text
    assert f'scorer={{kind: linear, model: "{out}"}}' in text
    config = tmp_path / "mine.yaml"
    config.write_text(
        "model: {id: gpt2}\n"
        f"sources: [{{name: made-up, format: jigsaw, uri: {source.uri}}}, "
        "{name: wiki, format: sentences, uri: nowhere.txt}]\n"
    )
    again = tmp_path / "again"
    words = ("--config", str(config), "--out", str(again), "--ngrams", "words", "--json")
    code, text, _ = run(*words)
    assert code == 0
    assert json.loads(text.splitlines()[-1])["auroc"] == quality.auroc
    assert (again / "classifier.json").read_bytes() == (out / "classifier.json").read_bytes()
    for wrong in ("[1]", "{format: jigsaw}", "{uri: x", "{format: sentences, uri: x}"):
        code, _, message = run("--source", wrong, "--out", str(tmp_path / "none"))
        assert code == 2
        assert "--source source-1" in message
    assert run("--source", given, "--config", str(config), "--out", str(out))[0] == 2
    assert run("--out", str(tmp_path / "none"))[0] == 2
