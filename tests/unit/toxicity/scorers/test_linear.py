"""A linear scorer as the settings name it: scores, identity, toxic words, errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pydantic import ValidationError

from eigenshift.base.errors import ScorerError
from eigenshift.ngrams import read_classifier, write_classifier
from eigenshift.settings import ScorerSettings
from eigenshift.toxicity.attribution import GradientProposer, sum_shares
from eigenshift.toxicity.occlusion import find_toxic_words, propose_every_word
from eigenshift.toxicity.scorers.identity import identify_scorer
from eigenshift.toxicity.scorers.loading import load_scorer
from eigenshift.toxicity.word_spans import blank
from tests.support.linear_scorers import convert, fit_pipeline, make_folder, make_texts

ROOT = Path(__file__).parents[4]
TOXIC = "İ The kettle is a Zorbfool, the river is quiet"
INSULT = (TOXIC.index("Zorb"), TOXIC.index(","))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer that knows the made-up insults."""
    return make_folder(tmp_path_factory.mktemp("linear") / "scorer")


def load(folder: Path, **settings: Any) -> Any:
    """A scorer on the CPU."""
    named = ScorerSettings(kind="linear", model=str(folder), **settings)
    return load_scorer(named, "cpu", 8)


def test_scores_are_those_of_scikit_learn_and_blank_texts_have_none(folder: Path) -> None:
    """In the order given; a text of which it knows nothing is scored, as there."""
    pipeline = fit_pipeline(*make_texts(300))
    texts = [*make_texts(20, seed=3)[0], "qqqq"]
    found = load(folder).score(["", *texts, " \n"])
    assert [score.reason for score in (found[0], found[-1])] == ["blank text"] * 2
    expected = pipeline.predict_proba(texts)[:, 1].tolist()
    assert [score.probability for score in found[1:-1]] == expected


def test_scoring_needs_no_scikit_learn(folder: Path) -> None:
    """Nor torch's autograd: a process that may not import it scores all the same."""
    program = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['joblib'] = None\n"
        "from eigenshift.settings import ScorerSettings\n"
        "from eigenshift.toxicity.scorers.loading import load_scorer\n"
        f"settings = ScorerSettings(kind='linear', model={str(folder)!r})\n"
        f"print(load_scorer(settings, 'cpu', 8).score([{TOXIC!r}])[0].probability)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(done.stdout) == load(folder).score([TOXIC])[0].probability > 0.5


def test_what_decides_the_scores_decides_the_digest(folder: Path, tmp_path: Path) -> None:
    """The content does; where it lies, the name and the threshold do not."""
    copied = shutil.copytree(folder, tmp_path / "copied")
    (copied / "README.md").write_text("a note")
    one = ScorerSettings(kind="linear", model=str(folder))
    same = ScorerSettings(kind="linear", model=str(copied), name="other", toxic_threshold=0.7)
    assert identify_scorer(one) == identify_scorer(same)
    classifier = read_classifier(folder)
    classifier.members[0].weights[0] += 1e-9
    other = tmp_path / "other"
    other.mkdir()
    write_classifier(classifier, other)
    assert identify_scorer(one) != identify_scorer(ScorerSettings(kind="linear", model=str(other)))


def test_a_folder_made_anew_is_loaded_anew(tmp_path: Path) -> None:
    """In the same process, at the same place."""
    place = make_folder(tmp_path / "scorer")
    before = load(place).score([TOXIC])
    shutil.rmtree(place)
    make_folder(place, is_calibrated=True)
    assert load(place).score([TOXIC]) != before


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_the_insult_has_the_largest_share(tmp_path: Path, is_calibrated: bool) -> None:
    """By its place in the text as given, though its lower case is longer than the text."""
    scorer = load(make_folder(tmp_path / "scorer", is_calibrated=is_calibrated))
    (proposals,) = GradientProposer(scorer).propose([TOXIC])
    assert proposals[0].span == INSULT
    (shares,) = scorer.explain([TOXIC])
    assert proposals[0].attribution == pytest.approx(sum_shares(INSULT, shares))


def test_leave_one_out_falls_are_exact(folder: Path) -> None:
    """Scikit-learn's probability of the text less that of the text without the word."""
    pipeline = fit_pipeline(*make_texts(300))
    (words,) = find_toxic_words(
        load(folder), [TOXIC], propose_every_word, toxic_threshold=0.5, min_fall=0.1
    )
    assert words[0].span == INSULT
    whole, without = pipeline.predict_proba([TOXIC, blank(TOXIC, INSULT)])[:, 1]
    assert words[0].fall == whole - without


def test_texts_of_a_language_can_be_judged_by_a_linear_scorer(folder: Path, tmp_path: Path) -> None:
    """Beside another for the rest, and each explains its own."""
    other = tmp_path / "other"
    other.mkdir()
    write_classifier(convert(fit_pipeline(*make_texts(200), (("char_wb", (1, 3)),))), other)
    part = {"language": "zh", "kind": "linear", "model": str(other)}
    texts = [TOXIC, "火车呆灯瓜"]
    scorer = load(folder, for_languages=[part])
    expected = [*load(folder).score(texts[:1]), *load(other).score(texts[1:])]
    assert scorer.score(texts) == expected
    proposals = GradientProposer(scorer).propose(texts)
    assert proposals == [
        *GradientProposer(load(folder)).propose(texts[:1]),
        *GradientProposer(load(other)).propose(texts[1:]),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "linear"},
        {"kind": "linear", "model": "a", "label": "toxic"},
        {"kind": "linear", "model": "a", "revision": "main"},
        {"kind": "linear", "model": "a", "words": "w"},
        {"kind": "linear", "model": "a", "verdict": "argmax"},
    ],
)
def test_settings_that_do_not_fit_a_linear_scorer_are_refused(settings: dict[str, Any]) -> None:
    """Before anything is loaded."""
    with pytest.raises(ValidationError):
        ScorerSettings.model_validate(settings)


def test_a_missing_or_damaged_folder_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    """When it is identified, so before a run begins to work."""
    with pytest.raises(ScorerError, match="nowhere: expected the folder of a linear scorer"):
        load(tmp_path / "nowhere")
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ScorerError, match=r"weights\.safetensors: expected sha256"):
        load(damaged)


def test_a_remote_folder_is_fetched(folder: Path) -> None:
    """By any scheme; it is the same scorer, and a missing one is told."""
    remote = fsspec.filesystem("memory")
    remote.put(str(folder), "/scorers/made-up", recursive=True)
    settings = ScorerSettings(kind="linear", model="memory://scorers/made-up")
    local = ScorerSettings(kind="linear", model=str(folder))
    assert identify_scorer(settings) == identify_scorer(local)
    assert load_scorer(settings, "cpu", 8).score([TOXIC]) == load(folder).score([TOXIC])
    with pytest.raises(ScorerError, match="scorers/none: expected the folder"):
        load_scorer(ScorerSettings(kind="linear", model="memory://scorers/none"), "cpu", 8)


def test_its_n_grams_are_never_shown(folder: Path) -> None:
    """They may be offensive."""
    scorer = load(folder)
    assert "zorb" not in f"{scorer!r}{vars(scorer)!r}{scorer._classifier.blocks!r}"


def test_many_threads_score_alike(folder: Path) -> None:
    """What is remembered of words is shared."""
    from concurrent.futures import ThreadPoolExecutor

    texts, _ = make_texts(80, seed=4)
    scorer = load(folder)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(scorer.score, [texts] * 8))
    assert all(scores == found[0] for scores in found)
    assert np.std([score.probability for score in found[0]]) > 0.1
