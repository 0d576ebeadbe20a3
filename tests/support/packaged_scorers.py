"""A made-up scorer in a made-up package: fitted on made-up texts, dumped with joblib itself."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from eigenshift.fetching.catalogue import Member, PackagedScorer
from tests.support.linear_scorers import make_texts
from tests.support.packaged_models import LICENCE, digest

VECTORIZER, CLASSIFIER = "made_up_scorer/vectorizer.joblib", "made_up_scorer/model.joblib"
INFO = "made_up_scorer-1.0.dist-info"


@dataclass(frozen=True)
class MadeUpScorer:
    """A package, and the objects in it.

    Attributes:
        scorer: Its entry for the catalogue.
        wheel: The file.
        vectorizer: Fitted.
        classifier: Fitted.
    """

    scorer: PackagedScorer
    wheel: Path
    vectorizer: TfidfVectorizer
    classifier: CalibratedClassifierCV


def build_scorer_package(folder: Path) -> MadeUpScorer:
    """Fit a scorer of the packaged kind, dump it, pack it."""
    texts, is_toxic = make_texts(300)
    vectorizer = TfidfVectorizer(stop_words="english", min_df=0.01)
    rows = vectorizer.fit_transform(texts)
    classifier = CalibratedClassifierCV(LinearSVC(class_weight="balanced", dual=False, tol=1e-2))
    classifier.fit(rows, is_toxic.astype(int))
    members = {VECTORIZER: vectorizer, CLASSIFIER: classifier}
    files = {path: dump(item, folder / Path(path).name) for path, item in members.items()}
    wheel = pack_scorer(folder, files)
    scorer = PackagedScorer(
        name="tiny-scorer",
        title="Tiny-Scorer-Made-Up",
        origin="https://example.org/someone/tiny-scorer",
        makers="Someone",
        licence="MIT",
        package="made-up-scorer",
        version="1.0",
        wheel_sha256=digest(wheel),
        licence_member=f"{INFO}/LICENSE",
        folder_bytes=1_000_000,
        vectorizer=Member(VECTORIZER, digest(files[VECTORIZER])),
        classifier=Member(CLASSIFIER, digest(files[CLASSIFIER])),
        trained_on="made-up texts",
    )
    return MadeUpScorer(scorer, wheel, vectorizer, classifier)


def dump(item: Any, path: Path) -> Path:
    """Write an object with joblib."""
    joblib.dump(item, path)
    return path


def pack_scorer(folder: Path, files: dict[str, Path]) -> Path:
    """Pack files as a package that pip takes, for a Python that there will never be."""
    path = folder / "made_up_scorer-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: made-up-scorer\nVersion: 1.0\nRequires-Python: >=9\n"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, file in files.items():
            archive.write(file, member)
        archive.writestr(f"{INFO}/LICENSE", LICENCE)
        archive.writestr(f"{INFO}/METADATA", metadata)
        archive.writestr(f"{INFO}/WHEEL", wheel)
        archive.writestr(f"{INFO}/RECORD", "")
    return path
