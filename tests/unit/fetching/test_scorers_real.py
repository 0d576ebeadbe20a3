"""The real package: downloaded, checked, and scoring as its own code does.

Skips with a reason only where the package index does not answer, or this environment has other
versions than the package's own code asks for.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from eigenshift.base.auroc import estimate_auroc
from eigenshift.fetching.catalogue import PROFANITY_CHECK
from eigenshift.fetching.scorers import fetch_scorer
from eigenshift.fetching.wheels import UnreachableIndexError, check_wheel, download_wheel
from eigenshift.ngrams import NgramClassifier, read_classifier
from tests.support.linear_scorers import ODD_TEXTS, make_texts

pytestmark = [pytest.mark.slow, pytest.mark.network]

REQUIRED = {"scikit-learn": "1.9.1", "joblib": "1.6.0"}
"""What the package's own code asks for; another scikit-learn may read its objects otherwise."""
PREDICT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from profanity_check import predict_prob
print(json.dumps(predict_prob(json.load(sys.stdin)).tolist()))
"""
ROOT = Path(__file__).parents[3]
REAL_DATA = Path(os.environ.get("EIGENSHIFT_REAL_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as pip downloads it."""
    try:
        found = download_wheel(PROFANITY_CHECK, tmp_path_factory.mktemp("wheel"))
    except UnreachableIndexError as error:
        pytest.skip(f"the package index is not reachable: {error}")
    check_wheel(found, PROFANITY_CHECK, is_given=False)
    return found


@pytest.fixture(scope="module")
def classifier(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> NgramClassifier:
    """Converted."""
    folder = tmp_path_factory.mktemp("fetched") / "profanity-check"
    assert fetch_scorer("profanity-check", folder, wheel).is_new
    return read_classifier(folder)


def test_it_scores_as_the_packages_own_predict_prob(
    wheel: Path, classifier: NgramClassifier, tmp_path: Path, neutral_texts: list[str]
) -> None:
    """Bit for bit; the package's code runs in a process of its own, and is not installed."""
    for name, version in REQUIRED.items():
        if metadata.version(name) != version:
            pytest.skip(f"the package's own code needs {name} {version}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    words = sorted(classifier.blocks[0].vocabulary)[::37]
    texts = [*neutral_texts, *make_texts(50)[0], *ODD_TEXTS, *words, " ".join(words)]
    done = subprocess.run(
        (sys.executable, "-c", PREDICT, str(tmp_path)),
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = np.array(json.loads(done.stdout))
    assert expected.std() > 0.1
    np.testing.assert_array_equal(classifier.score(texts), expected)


def test_it_tells_real_comments_apart(classifier: NgramClassifier) -> None:
    """An AUROC of 0.966 on labelled test rows of Jigsaw, where these are."""
    path = REAL_DATA / "jigsaw" / "test_labelled.csv"
    if not path.is_file():
        pytest.skip(f"no real data in {REAL_DATA}; EIGENSHIFT_REAL_DATA names its folder")
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    is_toxic = np.array([row["toxic"] == "1" for row in rows])
    scores = classifier.score([row["comment_text"] for row in rows])
    assert estimate_auroc(scores, is_toxic, 0.95)[0] == pytest.approx(0.966, abs=0.001)
