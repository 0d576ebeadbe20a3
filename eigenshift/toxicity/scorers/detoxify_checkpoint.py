"""Detoxify: a checkpoint opened with weights only, and the classifier it describes.

Reads a local or remote checkpoint, or one of Detoxify's own releases. Detoxify's class unpickles
what it is given (0.5.2, `load_checkpoint`), so only its model builder is used here.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from eigenshift.base.errors import ScorerError
from eigenshift.settings import PlainScorerSettings
from eigenshift.store.source_files import fetch_path
from eigenshift.toxicity.scorers.identity import require_existing
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier, wrap_classifier

CLASS_NAMES = {
    "toxic": "toxicity",
    "identity_hate": "identity_attack",
    "severe_toxic": "severe_toxicity",
}
"""Names that differ between Detoxify's training sets -> its own names in predictions."""


def load_detoxify(settings: PlainScorerSettings) -> OpenClassifier:
    """Load a Detoxify classifier.

    Raises:
        ScorerError: There is no such checkpoint, it does not open with weights only, it does not
            fit its configuration, or it has no such class.
    """
    document = (
        _download_release(settings)
        if settings.checkpoint is None
        else open_weights_only(fetch_path(require_existing(settings.checkpoint)))
    )
    model, tokenizer = _build_model(settings, document)
    names = document["config"]["dataset"]["args"]["classes"]
    classes = [CLASS_NAMES.get(name, name) for name in names]
    label = settings.effective_label
    if label not in classes:
        raise ScorerError(
            f"scorer {settings.name}: expected a class {label!r}, found {', '.join(classes)}. Set "
            "scorer.label to one of these."
        )
    place = classes.index(label)

    def judge(class_scores: Tensor) -> Tensor:
        return torch.sigmoid(class_scores[:, place])

    return wrap_classifier(model, tokenizer, judge)


def open_weights_only(checkpoint: Path) -> dict[str, Any]:
    """Open a checkpoint without running any code in it.

    Raises:
        ScorerError: It is damaged, could run code, or is not Detoxify's.
    """
    try:
        document = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ScorerError(
            f"{checkpoint.name}: expected a checkpoint that opens with weights only, found "
            f"{type(error).__name__}. It is damaged, or opening it could run code; it was not "
            "opened. Save it again with tensors and plain containers only."
        ) from error
    return _require_layout(document, checkpoint.name)


def _require_layout(document: Any, place: str) -> dict[str, Any]:
    if not isinstance(document, dict) or not {"config", "state_dict"} <= set(document):
        raise ScorerError(
            f"{place}: expected Detoxify's keys config and state_dict, found another "
            "layout. Use a checkpoint saved by Detoxify's training code."
        )
    return document


@dataclass(frozen=True)
class Release:
    """One of Detoxify's own releases: where it is downloaded from, and where it lies then."""

    url: str
    path: Path


def find_release(settings: PlainScorerSettings) -> Release:
    """The release that settings without a checkpoint mean; nothing is downloaded."""
    from detoxify.detoxify import MODEL_URLS  # late: it imports transformers, which takes seconds

    url = MODEL_URLS[settings.model_type]
    return Release(url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2])


def _download_release(settings: PlainScorerSettings) -> dict[str, Any]:
    url = find_release(settings).url
    try:
        document = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False
        )
    except (OSError, URLError, RuntimeError, pickle.UnpicklingError) as error:
        raise ScorerError(
            f"scorer {settings.name}: expected to download Detoxify {settings.model_type!r}, found "
            f"{type(error).__name__}. Without internet set scorer.checkpoint and "
            "scorer.config_folder to local copies."
        ) from error
    return _require_layout(document, url.rpartition("/")[2])


def _build_model(settings: PlainScorerSettings, document: dict[str, Any]) -> tuple[Any, Any]:
    """The model and tokenizer of a checkpoint, with every parameter taken from it."""
    from detoxify.detoxify import get_model_and_tokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    place = settings.checkpoint or settings.model_type
    state = document["state_dict"]
    try:
        arguments = dict(document["config"]["arch"]["args"])
        folder = None
        if settings.config_folder is not None:
            folder = str(fetch_path(require_existing(settings.config_folder)).resolve())
            # Detoxify asks the hub for this name even when it has a configuration folder.
            arguments["model_type"] = folder
        model, tokenizer = get_model_and_tokenizer(
            **arguments, state_dict=state, huggingface_config_path=folder
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise ScorerError(
            f"{place}: expected a Detoxify checkpoint that fits its configuration folder, found "
            f"{type(error).__name__}. Check scorer.checkpoint and scorer.config_folder; without a "
            "hub both are needed."
        ) from error
    differing = [
        name
        for name, value in model.named_parameters()
        if name not in state or not torch.equal(value.detach(), state[name].to(value.dtype))
    ]
    if differing:
        raise ScorerError(
            f"{place}: expected every parameter of {type(model).__name__}, found "
            f"{len(differing)} missing or of another shape (first: {differing[0]}). They would be "
            "random numbers. Give the configuration folder that belongs to the checkpoint."
        )
    return model, tokenizer
