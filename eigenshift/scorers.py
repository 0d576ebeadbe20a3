"""Toxicity classifiers behind one small interface.

Reads a checkpoint (local, remote, or from Detoxify's own releases). Returns probabilities; what is
toxic enough, and which texts are scored, is decided elsewhere. A text that cannot be scored gives
None with a reason, never a number.
"""

from __future__ import annotations

import hashlib
import logging
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from eigenshift.batching import is_out_of_memory, plan_batches, run_in_batches
from eigenshift.errors import ScorerError
from eigenshift.settings import ScorerSettings
from eigenshift.storage import digest_file, fetch_path, has_protocol, scratch_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """A probability, or the reason why there is none."""

    probability: float | None
    reason: str | None = None


@dataclass(frozen=True)
class OpenClassifier:
    """A neural classifier, open to those who take its gradients (`attribution.py`).

    Attributes:
        model: In eval mode; has word embeddings (`get_input_embeddings`); class scores come first.
        tokenizer: Gives the offsets of its tokens.
        judge: Class scores, shape (batch, class) -> probability of being toxic, shape (batch,).
        max_tokens: Longer texts are truncated.
    """

    model: Any
    tokenizer: Any
    judge: Callable[[Tensor], Tensor]
    max_tokens: int


class Scorer(Protocol):
    """Anything that gives a text a probability of being toxic."""

    name: str
    digest: str

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order. Safe to call from several threads."""
        ...


class DetoxifyScorer:
    """Detoxify's own class, fed in batches sorted by length.

    Args:
        settings: Which model or checkpoint.
        device: Where the classifier runs.
        texts_per_batch: Texts per forward pass; does not change the scores beyond rounding.
    """

    def __init__(self, settings: ScorerSettings, device: str, texts_per_batch: int) -> None:
        self.name = settings.name
        self.digest = identify_scorer(settings)
        self._texts_per_batch = texts_per_batch
        self._device = device
        self._lock = Lock()
        self._classifier = _load_detoxify(settings, device)
        if settings.label not in self._classifier.class_names:
            raise ScorerError(
                f"scorer {settings.name}: expected a class {settings.label!r}, found "
                f"{', '.join(self._classifier.class_names)}. Set scorer.label to one of these."
            )
        self._label = settings.label

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones are unscored."""
        scores: list[Score] = [Score(None, "blank text")] * len(texts)
        places = [place for place, text in enumerate(texts) if text.strip()]
        places.sort(key=lambda place: len(texts[place]))
        key = (self.digest, self._device, "scoring")

        def score_texts(batch: list[int]) -> list[Score]:
            return self._score_batch([texts[places[position]] for position in batch])

        for batch, found in run_in_batches(
            key, [1] * len(places), self._texts_per_batch, plan_batches, score_texts
        ):
            for position, score in zip(batch, found, strict=True):
                scores[places[position]] = score
        return scores

    @contextmanager
    def open_classifier(self) -> Iterator[OpenClassifier]:
        """The classifier itself, for oneself while the context lasts."""
        place = self._classifier.class_names.index(self._label)
        with self._lock:
            yield OpenClassifier(
                self._classifier.model,
                self._classifier.tokenizer,
                lambda class_scores: torch.sigmoid(class_scores[:, place]),
                self._classifier.model.config.max_position_embeddings - 2,
            )

    def _score_batch(self, texts: list[str]) -> list[Score]:
        """Score one batch; if the classifier chokes on it, one text at a time."""
        try:
            with self._lock:
                found = self._classifier.predict(texts)[self._label]
        except (RuntimeError, IndexError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            if len(texts) == 1:
                return [Score(None, f"classifier failed: {type(error).__name__}")]
            return [score for text in texts for score in self._score_batch([text])]
        values = found if isinstance(found, list) else [found]
        return [
            Score(float(value))
            if math.isfinite(value)
            else Score(None, "classifier gave no finite number")
            for value in values
        ]


def identify_scorer(settings: ScorerSettings) -> str:
    """Digest of what decides the scores: checkpoint and configuration, or the released name."""
    digest = hashlib.sha256(f"{settings.model_type}:{settings.label}".encode())
    if settings.checkpoint is not None:
        digest.update(digest_file(_existing(settings.checkpoint)).encode())
    if settings.config_folder is not None:
        folder = fetch_path(_existing(settings.config_folder))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(folder)}:{digest_file(str(path))}".encode())
    return digest.hexdigest()


_loading = Lock()


def load_scorer(settings: ScorerSettings, device: str, texts_per_batch: int) -> Scorer:
    """Load the scorer once per process.

    Raises:
        ScorerError: It cannot be loaded, or its checkpoint does not open with weights only.
    """
    with _loading:
        return _load_scorer(settings, device, texts_per_batch)


@lru_cache(maxsize=2)
def _load_scorer(settings: ScorerSettings, device: str, texts_per_batch: int) -> Scorer:
    return DetoxifyScorer(settings, device, texts_per_batch)


def _load_detoxify(settings: ScorerSettings, device: str) -> Any:
    # Imported late: it costs seconds, and cached runs need none.
    from detoxify import Detoxify
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    if settings.checkpoint is None:
        try:
            return Detoxify(settings.model_type, device=device)
        except (OSError, ValueError) as error:
            raise ScorerError(
                f"scorer {settings.name}: expected to download Detoxify "
                f"{settings.model_type!r}, found {type(error).__name__}. Without internet set "
                "scorer.checkpoint and scorer.config_folder to local copies."
            ) from error
    checkpoint = fetch_path(_existing(settings.checkpoint))
    document = _open_weights_only(checkpoint)
    folder = None
    if settings.config_folder is not None:
        folder = str(fetch_path(_existing(settings.config_folder)).resolve())
        checkpoint = _point_checkpoint_at(document, folder)
    try:
        return Detoxify(
            settings.model_type,
            checkpoint=str(checkpoint),
            device=device,
            huggingface_config_path=folder,
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ScorerError(
            f"{settings.checkpoint}: expected a Detoxify checkpoint that fits its configuration "
            f"folder, found {type(error).__name__}. Check scorer.checkpoint and "
            "scorer.config_folder."
        ) from error


def _open_weights_only(checkpoint: Path) -> dict[str, Any]:
    """Open a checkpoint without running any code in it; Detoxify itself unpickles what it gets."""
    try:
        document = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ScorerError(
            f"{checkpoint.name}: expected a checkpoint that opens with weights only, found "
            f"{type(error).__name__}. It is damaged, or opening it could run code; it was not "
            "opened. Save it again with tensors and plain containers only."
        ) from error
    if not isinstance(document, dict) or not {"config", "state_dict"} <= set(document):
        raise ScorerError(
            f"{checkpoint.name}: expected Detoxify's keys config and state_dict, found another "
            "layout. Use a checkpoint saved by Detoxify's training code."
        )
    return document


def _point_checkpoint_at(document: dict[str, Any], folder: str) -> Path:
    """Write a copy whose model type is the configuration folder.

    Detoxify asks the hub for `arch.args.model_type` even when it is given a configuration folder
    (detoxify 0.5, get_model_and_tokenizer), so offline the name must be a folder.
    """
    document["config"]["arch"]["args"]["model_type"] = folder
    checkpoint = Path(tempfile.mkdtemp(dir=scratch_folder())) / "checkpoint.ckpt"
    torch.save(document, checkpoint)
    return checkpoint


def _existing(uri: str) -> str:
    if not has_protocol(uri) and not Path(uri).exists():
        raise ScorerError(
            f"{uri}: expected a checkpoint or folder, found nothing. Check scorer.checkpoint and "
            "scorer.config_folder."
        )
    return uri
