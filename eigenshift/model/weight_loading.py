"""The weights of a folder, brought to their place or places, and written, by transformers.

Of a model that is divided over several places each part is read to where it stays; parts on disk
are read from the model's own files whenever they run. Which part goes where is `device_maps.py`'s,
whether what was loaded is whole `loading.py`'s.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eigenshift.model.classes import choose_auto_class
from eigenshift.model.device_maps import Division, Place, show_modules, show_place
from eigenshift.model.divided import find_device, is_divided
from eigenshift.model.layers import fuse_activations, keep_codes
from eigenshift.store.scratch import scratch_folder

logger = logging.getLogger(__name__)

PREFIX = "eigenshift-offloaded-"
SHARD_SIZE = "5GB"
"""Of the files a divided model is saved in."""
KEPT = "_eigenshift_files"
"""Attribute of a divided model that holds the folder of what had to be written anew."""


def load_weights(
    model_class: Any,
    folder: str,
    place: torch.device,
    division: Division | None,
    offload_folder: str | None,
    **named: Any,
) -> Any:
    """What a class's `from_pretrained` gives for a folder, at its place.

    Args:
        model_class: Of transformers.
        folder: With safetensors weights; of a divided model they are read again and again.
        place: Where the model goes, unless it is divided.
        division: Which part goes where.
        offload_folder: Where weights are written that the folder does not hold as they are run.
        named: Passed on.
    """
    named |= {"use_safetensors": True, "trust_remote_code": False}
    if division is None or division.is_whole:
        found = model_class.from_pretrained(folder, **named)
        whole = torch.device(show_place(division.main)) if division is not None else place
        _get_model(found).to(whole)
        return found
    logger.info("model divided: %s", describe_places(division.places))
    if offload_folder is not None:
        Path(offload_folder).mkdir(parents=True, exist_ok=True)
    # nobody shares it, since its files have the names of parameters; removed with the model
    kept = tempfile.TemporaryDirectory(prefix=PREFIX, dir=offload_folder or scratch_folder())
    with without_warnings():
        found = model_class.from_pretrained(
            folder, device_map=dict(division.places), offload_folder=kept.name, **named
        )
    setattr(_get_model(found), KEPT, kept)
    return found


@dataclass(frozen=True)
class Arrangement:
    """How a model was loaded, so that a changed copy of it can be loaded alike when it is gone.

    Attributes:
        auto_class: Of transformers.
        dtype: Its precision.
        device: Where its head is.
        division: Where its parts are, None if it is not divided.
    """

    auto_class: Any
    dtype: torch.dtype
    device: torch.device
    division: Division | None

    @classmethod
    def of(cls, model: Any) -> Arrangement:
        """Of a causal language model in memory."""
        division = Division(dict(model.hf_device_map), {}) if is_divided(model) else None
        device = find_device(model.get_output_embeddings())
        return cls(choose_auto_class(model.config), model.dtype, device, division)


def load_copy(arrangement: Arrangement, folder: str, offload_folder: str | None) -> Any:
    """Load a changed copy of a model from where it was saved, in eval mode."""
    loaded = load_weights(
        arrangement.auto_class,
        folder,
        arrangement.device,
        arrangement.division,
        offload_folder,
        dtype=arrangement.dtype,
    ).eval()
    fuse_activations(loaded)  # as the model's are, which tells in low precision
    keep_codes(loaded)
    return loaded


def save_weights(model: Any, folder: Path) -> None:
    """Have transformers write a model's weights and configuration.

    Codes loaded from files have no way back into the names of other checkpoints: `save_pretrained`
    ends in a NotImplementedError there, unless it leaves the names alone. A shard of a divided
    model is put together in memory, so it is not as large as transformers' own.

    Args:
        model: A `PreTrainedModel`.
        folder: Receives the files.
    """
    named: dict[str, Any] = {}
    if getattr(model.config, "quantization_config", None) is not None:
        named["save_original_format"] = False
    if is_divided(model):
        named["max_shard_size"] = SHARD_SIZE
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offload")
        model.save_pretrained(folder, **named)


def keep_files(part: Any, model: Any) -> None:
    """Let a part of a model hold the files that the model holds."""
    if hasattr(model, KEPT):
        setattr(part, KEPT, getattr(model, KEPT))


def describe_places(places: Mapping[str, Place]) -> str:
    """Which modules are where, in words."""
    by_place: dict[Place, list[str]] = {}
    for name, place in places.items():
        by_place.setdefault(place, []).append(name)
    return "; ".join(
        f"{show_place(place)}: {show_modules(names)}" for place, names in by_place.items()
    )


def _get_model(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


@contextmanager
def without_warnings() -> Iterator[None]:
    """Without accelerate's warnings of what was asked for."""
    noisy = logging.getLogger("accelerate.big_modeling")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The following device_map keys do not match")
            yield
    finally:
        noisy.setLevel(level)
