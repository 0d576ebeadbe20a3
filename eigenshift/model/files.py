"""Find and identify a model's files: in a folder, at any fsspec URL, or on the hub.

Only safetensors weights count; nothing pickled is opened. A model is known by a digest of its
files, so that a run can tell whether two names mean the same weights. Which files those are is in
`loaded_files.py`, loading in `loading.py`.
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

from eigenshift.base.errors import EigenShiftError, ModelError
from eigenshift.fetching.catalogue import suggest_fetching
from eigenshift.model.loaded_files import (
    CHAT_TEMPLATE_NAME,
    FURTHER_TEMPLATES,
    TOKENIZER_CONFIG_NAME,
    list_loaded_files,
)
from eigenshift.settings import ModelSettings
from eigenshift.store.source_files import digest_file, fetch_path, has_protocol, is_folder

logger = logging.getLogger(__name__)

DEFAULT_TEMPLATE = f"{FURTHER_TEMPLATES}/default.jinja"
HUB_PATTERNS = [
    *("*.safetensors", "*.json", "*.model", "*.model.*", "*.txt", "*.tiktoken", "*.jinja"),
    *("*.codes", "*.spm", "*.tokenizer", "README.md", "LICENSE*", "LICENCE*", "NOTICE*"),
]


def _list_ignored() -> list[str]:
    """Patterns of what lies in any folder but one (fnmatch knows no exceptions), and others."""
    kept, patterns = FURTHER_TEMPLATES, [f"{FURTHER_TEMPLATES}[!/]*/*"]
    for place, letter in enumerate(kept):
        patterns += [f"{kept[:place]}[!{letter}/]*/*", f"{kept[:place]}/*"]
    return [*patterns, "consolidated*", "adapter_model*"]


HUB_IGNORED = _list_ignored()


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
        ModelError: The folder or hub entry is missing or incomplete, its weights are only there in
            a pickled format, damaged or named by a wrapper, or something beside them makes
            transformers load another model (`loaded_files.list_loaded_files`).
    """
    folder, revision = _find_folder(settings)
    names = list_loaded_files(settings.id, folder)
    files = {name: digest_unchanged(folder / name) for name in names}
    digest = hashlib.sha256()
    for name, sha256 in files.items():
        digest.update(f"{name}\0{sha256}\n".encode())
    return ModelIdentity(settings.id, revision, digest.hexdigest(), folder, files)


def require_model_files(settings: ModelSettings) -> None:
    """Stop if a model's folder is not there or, on this machine, not whole; the hub is not asked.

    Reads names, small documents and headers; digests nothing.

    Raises:
        ModelError: As `identify_model`.
    """
    if is_hub_id(settings.id):
        return
    if not is_folder(settings.id):
        raise _describe_no_folder(settings.id)
    if not has_protocol(settings.id):
        list_loaded_files(settings.id, fetch_path(settings.id))


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
    if any((folder / name).is_file() for name in (CHAT_TEMPLATE_NAME, DEFAULT_TEMPLATE)):
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
        raise _describe_no_folder(settings.id)
    return _fetch_from_hub(settings)


def _describe_no_folder(model_id: str) -> ModelError:
    command = suggest_fetching(model_id)
    return ModelError(
        f"{model_id}: expected a folder with config.json and *.safetensors, found no such "
        + ("folder. " if command is None else f"folder. `{command}` makes it. ")
        + "Check model.id; a hub id has the form owner/name."
    )


def is_hub_id(model_id: str) -> bool:
    """Whether a model's id means an entry of the hub rather than a folder."""
    return not _looks_like_path(model_id) and not is_folder(model_id)


def _looks_like_path(model_id: str) -> bool:
    is_path = model_id.startswith(("/", ".", "~")) or "\\" in model_id
    return has_protocol(model_id) or is_path or model_id.count("/") > 1


def _fetch_from_hub(settings: ModelSettings) -> tuple[Path, str | None]:
    import huggingface_hub  # a third of a second, and most models lie in folders
    from huggingface_hub.errors import HFValidationError

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


def digest_unchanged(path: Path) -> str:
    """Digest of a local file, computed again only when its size or time of change differ."""
    status = path.stat()
    return _digest_local(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_local(path: str, _bytes: int, _modified: int) -> str:
    """Digest of a local file, computed again when size or time of change differ."""
    return digest_file(path)
