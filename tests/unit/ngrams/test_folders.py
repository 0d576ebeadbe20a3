"""A classifier's folder gives the same scores again, or an error that says what is wrong."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eigenshift.base.errors import ScorerError
from eigenshift.ngrams import identify_classifier, read_classifier, write_classifier
from eigenshift.ngrams.folders import DEFINITION_NAME, VOCABULARY_NAME, WEIGHTS_NAME
from eigenshift.store.local_files import digest_local_file
from tests.support.linear_scorers import ODD_TEXTS, convert, fit_pipeline, make_folder, make_texts


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer's folder; for tests that change it there is `folder`."""
    return make_folder(tmp_path_factory.mktemp("written") / "scorer")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(written, tmp_path / "scorer"))


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_what_is_read_scores_as_what_was_written(tmp_path: Path, is_calibrated: bool) -> None:
    """To the last bit, and its shares too."""
    classifier = convert(fit_pipeline(*make_texts(200), is_calibrated=is_calibrated))
    write_classifier(classifier, tmp_path)
    found = read_classifier(tmp_path)
    texts = [*make_texts(20, seed=2)[0], *ODD_TEXTS]
    np.testing.assert_array_equal(found.score(texts), classifier.score(texts))
    assert found.explain(texts) == classifier.explain(texts)


def test_the_digest_is_that_of_what_decides(written: Path, folder: Path, tmp_path: Path) -> None:
    """What lies beside does not; another weight does."""
    (folder / "README.md").write_text("a note")
    assert identify_classifier(folder) == identify_classifier(written)
    other = tmp_path / "other"
    other.mkdir()
    write_classifier(convert(fit_pipeline(*make_texts(200))), other)
    assert identify_classifier(other) != identify_classifier(written)


def test_equal_classifiers_have_equal_bytes_that_all_may_read(
    written: Path, tmp_path: Path
) -> None:
    """So a digest means something on another machine; safetensors' own mode is for one user."""
    again = make_folder(tmp_path / "again")
    for path in written.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert len({stat.S_IMODE(path.stat().st_mode) for path in again.iterdir()}) == 1


def test_a_folder_that_is_not_there_is_told_how_to_make(tmp_path: Path) -> None:
    """And so is one of something else."""
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ScorerError, match=r"found no classifier\.json.*train-scorer"):
            identify_classifier(place)


@pytest.mark.parametrize("name", [VOCABULARY_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b" ", None])
def test_a_changed_file_is_named(
    folder: Path, name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    """Cut short, edited, or gone: by the digest, before anything in it is read."""
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    with pytest.raises(ScorerError, match=f"{name}: expected sha256 .*found .*fetch-scorer"):
        read_classifier(folder)


@pytest.mark.parametrize("content", ["", "[1]", '"text"', "\xff"])
def test_a_damaged_description_is_told(folder: Path, content: str) -> None:
    """By its name."""
    (folder / DEFINITION_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(ScorerError, match=DEFINITION_NAME):
        read_classifier(folder)


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("format", "other"), ("version", 0)])
def test_another_version_is_told(folder: Path, field: str, value: object) -> None:
    """With both, and what to do."""
    path = folder / DEFINITION_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ScorerError, match=r"of version 1, found .*Make it again"):
        identify_classifier(folder)


def forge(folder: Path, name: str) -> None:
    """Give a file that was changed on purpose the digest it has now."""
    path = folder / DEFINITION_NAME
    definition = json.loads(path.read_text())
    definition["sha256"][name] = digest_local_file(folder / name)
    path.write_text(json.dumps(definition))


def test_weights_and_n_grams_that_do_not_fit_are_refused_without_quoting(folder: Path) -> None:
    """Digests that agree do not make a classifier."""
    vocabulary = json.loads((folder / VOCABULARY_NAME).read_text())
    (folder / VOCABULARY_NAME).write_text(json.dumps([vocabulary[0][:-1], vocabulary[1]]))
    forge(folder, VOCABULARY_NAME)
    with pytest.raises(ScorerError, match=r"fit classifier\.json") as raised:
        read_classifier(folder)
    assert "zorb" not in str(raised.value)
    (folder / VOCABULARY_NAME).write_text(json.dumps(vocabulary))
    forge(folder, VOCABULARY_NAME)
    tensors = load_file(folder / WEIGHTS_NAME)
    del tensors["slopes"]
    save_file(tensors, folder / WEIGHTS_NAME)
    forge(folder, WEIGHTS_NAME)
    with pytest.raises(ScorerError, match="found KeyError"):
        read_classifier(folder)
