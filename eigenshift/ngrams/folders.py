"""A classifier's folder: written, known by its digest, read back; nothing in it is code.

`classifier.json` says how texts are read and holds digests of the two other files that decide the
scores: `vocabulary.json`, the n-grams of each block in the order of their columns (they may be
offensive), and `weights.safetensors`, in float64. Whoever makes the folder may put more beside
them, such as where it is from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from eigenshift.base.errors import ScorerError
from eigenshift.ngrams.analysis import Analysis, Unit
from eigenshift.ngrams.classifier import Block, Member, NgramClassifier
from eigenshift.store.local_files import recall_digest

FORMAT = "n-gram classifier"
VERSION = 1
DEFINITION_NAME = "classifier.json"
VOCABULARY_NAME = "vocabulary.json"
WEIGHTS_NAME = "weights.safetensors"
REMEDY = "Make it again with eigenshift train-scorer or eigenshift fetch-scorer."


def write_classifier(classifier: NgramClassifier, folder: Path) -> None:
    """Write a classifier's three files into a folder."""
    vocabulary = [list(block.vocabulary) for block in classifier.blocks]
    (folder / VOCABULARY_NAME).write_text(
        json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8"
    )
    members = classifier.members
    tensors = {
        "idf": np.concatenate([block.idf for block in classifier.blocks]),
        "weights": np.stack([member.weights for member in members]),
        "intercepts": np.array([member.intercept for member in members]),
        "slopes": np.array([member.slope for member in members]),
        "offsets": np.array([member.offset for member in members]),
    }
    save_file(tensors, folder / WEIGHTS_NAME)
    # safetensors lets nobody else read what it writes
    (folder / WEIGHTS_NAME).chmod((folder / VOCABULARY_NAME).stat().st_mode)
    definition = {
        "format": FORMAT,
        "version": VERSION,
        "blocks": [_describe_block(block) for block in classifier.blocks],
        "sha256": {name: recall_digest(folder / name) for name in (VOCABULARY_NAME, WEIGHTS_NAME)},
    }
    (folder / DEFINITION_NAME).write_text(json.dumps(definition, indent=2) + "\n", encoding="utf-8")


def identify_classifier(folder: Path) -> str:
    """Digest of all that decides the scores, once the files are those the folder was made of.

    Raises:
        ScorerError: There is no such folder, it is of another version, or a file was changed.
    """
    _read_definition(folder)
    return recall_digest(folder / DEFINITION_NAME)


def read_classifier(folder: Path) -> NgramClassifier:
    """Read a classifier.

    Raises:
        ScorerError: As `identify_classifier`.
    """
    definition = _read_definition(folder)
    try:
        tensors = load_file(folder / WEIGHTS_NAME)
        vocabulary = json.loads((folder / VOCABULARY_NAME).read_text(encoding="utf-8"))
        return _assemble(definition, vocabulary, tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ScorerError(
            f"{folder}: expected n-grams and weights that fit {DEFINITION_NAME}, found "
            f"{type(error).__name__}. {REMEDY}"
        ) from None  # the error may quote the vocabulary


def _describe_block(block: Block) -> dict[str, Any]:
    return {
        "unit": block.analysis.unit.value,
        "min_length": block.analysis.min_length,
        "max_length": block.analysis.max_length,
        "lowercase": block.analysis.lowercase,
        "sublinear": block.sublinear,
    }


def _read_definition(folder: Path) -> dict[str, Any]:
    """The folder's own description, after its files were compared with it."""
    path = folder / DEFINITION_NAME
    if not path.is_file():
        raise ScorerError(
            f"{folder}: expected the folder of a linear scorer, found no {DEFINITION_NAME} there. "
            "Check scorer.model, or make one with eigenshift train-scorer or eigenshift "
            "fetch-scorer."
        )
    try:
        definition = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ScorerError(
            f"{path}: expected JSON that describes a linear scorer, found {type(error).__name__}. "
            f"It is damaged, or not ours. {REMEDY}"
        ) from error
    found = (definition.get("format"), definition.get("version"))
    if found != (FORMAT, VERSION):
        raise ScorerError(
            f"{path}: expected {FORMAT!r} of version {VERSION}, found {found[0]!r} of version "
            f"{found[1]!r}. Another release of EigenShift wrote it, or another tool. {REMEDY}"
        )
    _check_files(folder, definition.get("sha256"))
    return definition


def _check_files(folder: Path, digests: Any) -> None:
    expected = digests if isinstance(digests, Mapping) else {}
    for name in (VOCABULARY_NAME, WEIGHTS_NAME):
        path = folder / name
        found = recall_digest(path) if path.is_file() else None
        if found is None or found != expected.get(name):
            state = "no such file" if found is None else f"sha256 {found}"
            raise ScorerError(
                f"{path}: expected sha256 {expected.get(name)} ({DEFINITION_NAME}), found {state}. "
                f"It was changed or damaged since it was written. {REMEDY}"
            )


def _assemble(
    definition: Mapping[str, Any], vocabulary: Any, tensors: Mapping[str, Any]
) -> NgramClassifier:
    sizes = [len(of_block) for of_block in vocabulary]
    idf = np.split(tensors["idf"], np.cumsum(sizes)[:-1])
    blocks = [
        Block(_read_analysis(described), of_block, of_idf, described["sublinear"])
        for described, of_block, of_idf in zip(definition["blocks"], vocabulary, idf, strict=True)
    ]
    members = [
        Member(weights, float(intercept), float(slope), float(offset))
        for weights, intercept, slope, offset in zip(
            *(tensors[name] for name in ("weights", "intercepts", "slopes", "offsets")), strict=True
        )
    ]
    if tensors["idf"].shape != tensors["weights"].shape[1:] or len(tensors["idf"]) != sum(sizes):
        raise ValueError("another number of n-grams")
    return NgramClassifier(blocks, members)


def _read_analysis(described: Mapping[str, Any]) -> Analysis:
    return Analysis(
        Unit(described["unit"]),
        int(described["min_length"]),
        int(described["max_length"]),
        bool(described["lowercase"]),
    )
