"""Fitted objects come out of joblib files as joblib has them, and nothing else comes out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from eigenshift.base.errors import ModelError
from eigenshift.fetching import joblib_files
from eigenshift.fetching.joblib_files import read_joblib
from tests.support.packaged_scorers import MadeUpScorer, build_scorer_package, dump


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeUpScorer:
    """Objects that were fitted here, and dumped."""
    return build_scorer_package(tmp_path_factory.mktemp("package"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the process writes."""
    path = tmp_path / "out"
    path.mkdir()
    return path


def read(file: Path, folder: Path) -> Any:
    """Read a file that is named in errors as 'the file'."""
    return read_joblib(file, "the file", folder)


def test_objects_have_the_attributes_that_joblib_gives_them(
    made: MadeUpScorer, folder: Path, tmp_path: Path
) -> None:
    """Numbers, words, nested objects and arrays, by scikit-learn's own objects."""
    other = tmp_path / "other"
    other.mkdir()
    vectorizer = read(made.wheel.parent / "vectorizer.joblib", folder)
    classifier = read(made.wheel.parent / "model.joblib", other)
    assert vectorizer.vocabulary_ == made.vectorizer.vocabulary_
    assert vectorizer.ngram_range == [1, 1]
    np.testing.assert_array_equal(vectorizer._tfidf.idf_, made.vectorizer.idf_)
    pairs = zip(
        classifier.calibrated_classifiers_, made.classifier.calibrated_classifiers_, strict=True
    )
    for found, expected in pairs:
        np.testing.assert_array_equal(found.estimator.coef_, expected.estimator.coef_)
        np.testing.assert_array_equal(found.estimator.intercept_, expected.estimator.intercept_)
        np.testing.assert_array_equal(found.classes, expected.classes)
        assert found.calibrators[0].a_ == expected.calibrators[0].a_
        assert found.calibrators[0].b_ == expected.calibrators[0].b_


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.arange(6.0).reshape(2, 3), "b": [np.arange(3), np.zeros((0, 4)), "end"]},
        [np.float64(0.1), np.int64(-3), None, True, 1.5, "茶", np.array(2.5)],
        {"same": [(x := np.arange(5, dtype=np.int32)), x]},
    ],
)
def test_arrays_and_numbers_are_those_that_were_dumped(
    value: Any, folder: Path, tmp_path: Path
) -> None:
    """Several in a row, empty ones, one twice: each begins where the one before ends."""
    np.testing.assert_equal(read(dump(value, tmp_path / "file.joblib"), folder), value)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle may do to whoever opens it."""
        return Path.touch, (self.path,)


def test_a_file_that_names_anything_else_is_refused_and_runs_nothing(
    folder: Path, tmp_path: Path
) -> None:
    """The class is told; joblib itself would run it."""
    trace = tmp_path / "trace"
    file = dump({"weights": np.zeros(3), "extra": Malicious(trace)}, tmp_path / "bad.joblib")
    with pytest.raises(ModelError, match=r"the file: .*known classes only, found pathlib\.") as e:
        read(file, folder)
    assert "Fetch the wheel again" in str(e.value)
    assert not trace.exists()
    joblib.load(file)
    assert trace.exists()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.array([object()]), "little-endian"),
        (np.arange(3, dtype=">f8"), "little-endian"),
        (np.arange(3, dtype=np.complex128), "little-endian"),
        (np.arange(6.0).reshape(2, 3).T, "order 'F'"),
        ({1: 2}, "found dict"),
        (b"bytes", "found bytes"),
    ],
)
def test_what_fitted_objects_do_not_hold_is_refused(
    value: Any, found: str, folder: Path, tmp_path: Path
) -> None:
    """Rather than guessed at."""
    with pytest.raises(ModelError, match=f"expected fitted objects.*{found}"):
        read(dump(value, tmp_path / "file.joblib"), folder)


@pytest.mark.parametrize("n_bytes", [0, 10, 200, -8])
def test_a_damaged_file_is_told(made: MadeUpScorer, folder: Path, n_bytes: int) -> None:
    """Cut short anywhere, in an array too."""
    data = (made.wheel.parent / "model.joblib").read_bytes()
    (folder / "cut.joblib").write_bytes(data[:n_bytes])
    with pytest.raises(ModelError, match=r"the file: expected fitted objects.*found: expected"):
        read(folder / "cut.joblib", folder)


def test_what_takes_too_long_is_stopped(
    made: MadeUpScorer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is doing."""
    monkeypatch.setattr(joblib_files, "TIMEOUT_SECONDS", 0.0)
    with pytest.raises(ModelError, match="nothing after 0 seconds"):
        read(made.wheel.parent / "model.joblib", folder)


def test_a_plain_pickle_is_read_too(folder: Path, tmp_path: Path) -> None:
    """A joblib file without arrays is one."""
    (tmp_path / "plain").write_bytes(pickle.dumps({"a": [1, 2.5]}, 5))
    assert read(tmp_path / "plain", folder) == {"a": [1, 2.5]}
