"""Find and identify a model's files: in a folder, at any fsspec URL, or on the hub.

Only safetensors weights count; nothing pickled is opened. A model is known by a digest of its
files, so that a run can tell whether two names mean the same weights. Loading is in `loading.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from eigenshift.base.errors import EigenShiftError, ModelError
from eigenshift.fetching.catalogue import suggest_fetching
from eigenshift.settings import ModelSettings
from eigenshift.store.source_files import digest_file, fetch_path, has_protocol, is_folder

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAMES = ("config.json", "generation_config.json")
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
VOCABULARY_NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
TOKENIZER_NAMES = (
    *VOCABULARY_NAMES,
    "merges.txt",
    TOKENIZER_CONFIG_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_TEMPLATE_NAME,
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_PATTERNS = [
    *("*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja"),
    *("README.md", "LICENSE*", "LICENCE*", "NOTICE*"),
]
HUB_IGNORED = ["*/*", "consolidated*", "adapter_*"]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model this is.

    Attributes:
        id: As given in the settings.
        revision: The hub commit where it is known, else None.
        digest: sha256 over names and digests of weights, configuration and tokenizer files. The
            only part that belongs in a fingerprint.
        folder: Local folder with the files; differs between machines.
        files: Name of each file -> its sha256: what `digest` is over.
    """

    id: str
    revision: str | None
    digest: str
    folder: Path = field(compare=False)
    files: Mapping[str, str] = field(compare=False, repr=False)


def identify_model(settings: ModelSettings) -> ModelIdentity:
    """Find a model's files and digest them, without loading any weights.

    A folder (local, or any fsspec URL) is taken before a hub id of the same name.

    Raises:
        ModelError: The folder or hub entry is missing or incomplete, or its weights are only
            there in a pickled format or are damaged.
    """
    folder, revision = _find_folder(settings)
    names = _list_weights(settings.id, folder)
    names += [name for name in CONFIG_NAMES if (folder / name).is_file()]
    names += sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and (path.name in TOKENIZER_NAMES or path.suffix == ".tiktoken")
    )
    files = {name: digest_unchanged(folder / name) for name in sorted(names)}
    digest = hashlib.sha256()
    for name, sha256 in files.items():
        digest.update(f"{name}\0{sha256}\n".encode())
    return ModelIdentity(settings.id, revision, digest.hexdigest(), folder, files)


def uses_chat(settings: ModelSettings, folder: Path) -> bool:
    """Whether a model's texts go through its chat template.

    Raises:
        ModelError: They are to, and it has none.
    """
    if settings.chat == "off":
        return False
    has_template = _has_chat_template(folder)
    if not has_template and (settings.chat == "on" or settings.system_prompt is not None):
        asked = "model.chat: on" if settings.chat == "on" else "model.system_prompt"
        raise ModelError(
            f"{settings.id}: expected a chat template in {CHAT_TEMPLATE_NAME} or "
            f"{TOKENIZER_CONFIG_NAME}, found none, but {asked} needs one. The model is probably a "
            "base model that was not trained on conversations. Leave the setting out."
        )
    return has_template


def _has_chat_template(folder: Path) -> bool:
    if (folder / CHAT_TEMPLATE_NAME).is_file():
        return True
    try:
        config = json.loads((folder / TOKENIZER_CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _find_folder(settings: ModelSettings) -> tuple[Path, str | None]:
    """Return a local folder with the model's files, and the hub commit if known."""
    try:
        if is_folder(settings.id):
            folder = fetch_path(settings.id)
            if settings.revision is not None:
                logger.warning("model revision ignored: %s is a folder, not a hub id", settings.id)
            return folder, _read_commit(folder)
    except EigenShiftError:
        raise
    except Exception as error:
        raise ModelError(
            f"{settings.id}: expected a folder that can be read, found: {type(error).__name__}: "
            f"{error}. Check the URL and the credentials in the environment."
        ) from error
    if _looks_like_path(settings.id):
        command = suggest_fetching(settings.id)
        raise ModelError(
            f"{settings.id}: expected a folder with config.json and *.safetensors, found no such "
            + ("folder. " if command is None else f"folder. `{command}` makes it. ")
            + "Check model.id; a hub id has the form owner/name."
        )
    return _fetch_from_hub(settings)


def is_hub_id(model_id: str) -> bool:
    """Whether a model's id means an entry of the hub rather than a folder."""
    return not _looks_like_path(model_id) and not is_folder(model_id)


def _looks_like_path(model_id: str) -> bool:
    is_path = model_id.startswith(("/", ".", "~")) or "\\" in model_id
    return has_protocol(model_id) or is_path or model_id.count("/") > 1


def _fetch_from_hub(settings: ModelSettings) -> tuple[Path, str | None]:
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                settings.id,
                revision=settings.revision,
                allow_patterns=HUB_PATTERNS,
                ignore_patterns=HUB_IGNORED,
            )
        )
    except HFValidationError as error:
        raise ModelError(
            f"{settings.id}: expected a folder or a hub id such as owner/name, found neither. "
            "Check model.id."
        ) from error
    except Exception as error:
        revision = f" at revision {settings.revision}" if settings.revision else ""
        raise ModelError(
            f"{settings.id}: looked for a folder of that name and found none, then for a model of "
            f"that id{revision} on the Hugging Face hub and its local cache: "
            f"{type(error).__name__}. Check model.id, the network, and HF_TOKEN for gated models; "
            "without a hub, give a folder."
        ) from error
    return folder, _read_commit(folder)


def _read_commit(folder: Path) -> str | None:
    """The commit, where a folder is a snapshot in the hub's cache."""
    is_snapshot = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if is_snapshot else None


def _list_weights(model_id: str, folder: Path) -> list[str]:
    """Names of the safetensors files the model is loaded from, checked to be whole."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{model_id}: expected config.json in {folder}, found none. The folder holds no model, "
            "or only part of one. Check model.id, or fetch the model again."
        )
    index = folder / WEIGHTS_INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file():
        names = [WEIGHTS_NAME]
    elif index.is_file():
        names = [WEIGHTS_INDEX_NAME, *_read_index(model_id, index)]
    else:
        raise ModelError(_explain_no_weights(model_id, folder))
    for name in names:
        if name.endswith(".safetensors"):
            _check_weights(model_id, folder / name)
    return names


def _read_index(model_id: str, index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{model_id}: expected a weight_map in {index.name}, found: {type(error).__name__}. "
            "The file is damaged. Fetch the model again."
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{model_id}: expected {len(names)} weight files ({index.name}), found "
            f"{len(names) - len(missing)}; missing: {', '.join(missing[:3])}. The copy is not "
            "complete. Fetch the model again."
        )
    return names


def _explain_no_weights(model_id: str, folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickled = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    expected = f"{model_id}: expected {WEIGHTS_NAME} (or its index and shards) in {folder}, found"
    if any(name.startswith("adapter_model") for name in names):
        return (
            f"{expected} an adapter. An adapter is not a model by itself. Merge it into its base "
            "model (peft merge_and_unload) and give that folder."
        )
    what = f"only {', '.join(pickled[:3])}" if pickled else "no safetensors weights"
    return (
        f"{expected} {what}. Pickled weights can run code when opened, so they are never opened "
        "here. On a machine where you trust them, load the model with transformers, write it with "
        "save_pretrained (that writes safetensors), and give the new folder."
    )


def _check_weights(model_id: str, path: Path) -> None:
    """Read a safetensors header; it states how long the file must be."""
    try:
        with safe_open(str(path), framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{model_id}: expected a whole safetensors file in {path.name}, found: {error}. The "
            "download was probably cut short, or the file is a git-lfs pointer. Fetch it again."
        ) from error


def digest_unchanged(path: Path) -> str:
    """Digest of a local file, computed again only when its size or time of change differ."""
    status = path.stat()
    return _digest_local(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_local(path: str, _bytes: int, _modified: int) -> str:
    """Digest of a local file, computed again when size or time of change differ."""
    return digest_file(path)
