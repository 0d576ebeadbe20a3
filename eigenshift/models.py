"""Identify and load causal language models: from the hub, a folder, or any fsspec URL.

Only safetensors weights and the classes shipped with transformers are used: nothing is unpickled
and no code of the model's author runs. A model is known by a digest of its files, so that a run
can tell whether two names mean the same weights. What the output head does is in `heads.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from eigenshift.errors import EigenShiftError, ModelError, SettingsError
from eigenshift.heads import HeadDescription, describe_head
from eigenshift.settings import ModelSettings
from eigenshift.storage import digest_file, fetch_path, has_protocol, is_folder

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAMES = ("config.json", "generation_config.json")
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
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*", "adapter_*"]
MAX_LOADED_MODELS = 1
"""Models kept in memory by this process; a refresh studies one."""

_loaded: dict[tuple[str, str, str], LanguageModel] = {}
_loading = threading.Lock()


@dataclass(frozen=True)
class ModelIdentity:
    """Which model this is.

    Attributes:
        id: As given in the settings.
        revision: The hub commit where it is known, else None.
        digest: sha256 over names and digests of weights, configuration and tokenizer files. The
            only part that belongs in a fingerprint.
        folder: Local folder with the files; differs between machines.
    """

    id: str
    revision: str | None
    digest: str
    folder: Path = field(compare=False)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model ready to run.

    Attributes:
        model: The `PreTrainedModel`, in eval mode, on `device`, without gradients.
        tokenizer: Its tokenizer; always has a pad token.
        head: What its output head does.
        id: As given in the settings.
        digest: Digest of its files (`ModelIdentity.digest`).
        device: Where it runs.
        lock: Held while hooks are on the model or its tokenizer is used, so that two tasks in
            one process do not read each other's states. Re-entrant.
    """

    model: Any
    tokenizer: Any
    head: HeadDescription
    id: str
    digest: str
    device: torch.device
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)  # type: ignore[valid-type, unused-ignore]

    @property
    def head_module(self) -> nn.Linear:
        """The output head itself."""
        module: nn.Linear = self.model.get_submodule(self.head.name)
        return module

    @property
    def head_weight(self) -> Tensor:
        """The head's weight in force, shape (vocab, hidden)."""
        return self.head_module.weight

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        return get_trunk(self.model)


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
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{_digest_local(folder / name)}\n".encode())
    return ModelIdentity(settings.id, revision, digest.hexdigest(), folder)


def load_model(settings: ModelSettings, device: str = "auto") -> LanguageModel:
    """Load a causal language model, or return it if this process has it already.

    Args:
        settings: Which model, at which precision.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ModelError: It cannot be identified or loaded, needs its author's code, is not a causal
            language model, or has a head that is not supported.
        SettingsError: There is no such device here.
    """
    identity = identify_model(settings)
    place = resolve_device(device)
    key = (identity.digest, settings.dtype, str(place))
    with _loading:
        if key not in _loaded:
            while len(_loaded) >= MAX_LOADED_MODELS:
                _loaded.pop(next(iter(_loaded)))
            logger.info("model loading: id=%s device=%s dtype=%s", identity.id, place, key[1])
            model = _load_weights(identity, settings.dtype).to(place)
            tokenizer = _load_tokenizer(identity)
            _loaded[key] = wrap_model(
                model, tokenizer, model_id=identity.id, digest=identity.digest
            )
        return _loaded[key]


@contextmanager
def use_model(settings: ModelSettings, device: str = "auto") -> Iterator[LanguageModel]:
    """Load a model and have it to oneself: its lock is held until the end of the block.

    Tasks in one process share one model; without this one task could run with another's hooks or
    patched head.

    Raises:
        ModelError, SettingsError: As `load_model`.
    """
    language_model = load_model(settings, device)
    with language_model.lock:
        yield language_model


def describe_model(language_model: LanguageModel, identity: ModelIdentity) -> dict[str, Any]:
    """Facts about a model that fit into JSON and hold under any name: digest, size and head."""
    head = language_model.head
    return {
        "digest": identity.digest,
        "model_class": type(language_model.model).__name__,
        "n_parameters": sum(item.numel() for item in language_model.model.parameters()),
        "n_layers": len(list_layers(language_model.model)),
        "head": {**asdict(head), "dtype": str(head.dtype).removeprefix("torch.")},
    }


def forget_models() -> None:
    """Drop the models this process keeps, so that their memory can be freed."""
    with _loading:
        _loaded.clear()


def wrap_model(model: Any, tokenizer: Any, *, model_id: str, digest: str) -> LanguageModel:
    """Make a `LanguageModel` of a model and tokenizer already in memory.

    Args:
        model: A `PreTrainedModel` on its device; put into eval mode here.
        tokenizer: Given a pad token here if it has none.
        model_id: Name for people.
        digest: What identifies the weights.

    Raises:
        ModelError: Its head is not supported, or it is not causal.
    """
    model.eval()
    model.requires_grad_(False)
    head = describe_head(model)
    _set_pad_token(tokenizer, head.vocab)
    if len(tokenizer) > head.vocab:
        logger.warning(
            "tokenizer larger than the head: tokens=%d vocab=%d; ids beyond are refused when met",
            len(tokenizer),
            head.vocab,
        )
    device = model.get_output_embeddings().weight.device
    return LanguageModel(model, tokenizer, head, model_id, digest, device)


def resolve_device(name: str) -> torch.device:
    """Return the device a setting names; "auto" takes a GPU if there is one.

    Raises:
        SettingsError: There is no such device here.
    """
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        if name == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(
            f"execution.device: expected a device of this machine, found {name!r}: {reason} "
            "Use auto or cpu, or a torch build for your GPU."
        ) from error
    return device


@contextmanager
def capture_head_states(
    language_model: LanguageModel, *, skip_logits: bool = False
) -> Iterator[list[Tensor]]:
    """Record what enters the output head in every forward pass run inside.

    Holds the model's lock. Each entry is one forward pass, shape (batch, position, hidden), dtype
    and device of the model; when `generate` keeps a cache, position is 1 after the first pass.
    With `skip_logits` the head is applied to the last position only, which saves most of its work
    and a tensor of (batch, position, vocab).
    """
    states: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        states.append(args[0].detach())
        return (args[0][:, -1:],) if skip_logits else None

    with language_model.lock:
        handle = language_model.head_module.register_forward_pre_hook(record)
        try:
            yield states
        finally:
            handle.remove()


def get_trunk(model: Any) -> nn.Module:
    """Return a model without its output head; a bare trunk is returned as it is."""
    has_own_head = model.base_model is model and model.get_output_embeddings() is not None
    trunk: nn.Module = model.get_decoder() if has_own_head else model.base_model
    return trunk


def list_layers(model: Any) -> list[nn.Module]:
    """Return a model's blocks, first to last.

    They are the entries of the `ModuleList` that has as many as the configuration has hidden
    layers; where several do (experts, a vision tower), blocks of one class go before mixed ones,
    then the list with most weights is taken. Works on heads-and-all models and on trunks.

    Raises:
        ModelError: No module list has that many entries.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    found: list[nn.ModuleList] = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise ModelError(
            f"{type(model).__name__}: expected a list of {n_layers} layers (num_hidden_layers), "
            "found none. The model shares or nests its layers in a way that is not supported. "
            "Choose another model."
        )
    return list(sorted(found, key=_rank_blocks)[-1])


def _rank_blocks(blocks: nn.ModuleList) -> tuple[bool, int]:
    is_uniform = len({type(block) for block in blocks}) == 1
    return is_uniform, sum(parameter.numel() for parameter in blocks.parameters())


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
        raise ModelError(
            f"{settings.id}: expected a folder with config.json and *.safetensors, found no such "
            "folder. Check model.id; a hub id has the form owner/name."
        )
    return _fetch_from_hub(settings)


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


def _digest_local(path: Path) -> str:
    status = path.stat()
    return _digest_unchanged(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_unchanged(path: str, _bytes: int, _modified: int) -> str:
    """Digest of a local file, computed again when size or time of change differ."""
    return digest_file(path)


def _load_weights(identity: ModelIdentity, dtype: str) -> Any:
    """Load a causal language model on the CPU; every weight must come from the files."""
    transformers_logging.disable_progress_bar()
    folder = str(identity.folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ModelError(
                f"{identity.id}: expected a decoder-only causal language model, found an "
                f"encoder-decoder ({config.model_type}). Choose another model."
            )
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (SafetensorError, ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(_explain_load_error(identity.id, error)) from error
    absent = sorted(report["missing_keys"]) + sorted(
        str(item[0]) if isinstance(item, tuple) else str(item) for item in report["mismatched_keys"]
    )
    if absent:
        raise ModelError(
            f"{identity.id}: expected every weight of {type(model).__name__} in the files, found "
            f"{len(absent)} missing or of another shape, e.g. {absent[0]}. They would be random. "
            "The weights are probably of a trunk or another task; choose a causal language model."
        )
    return model


def _explain_load_error(model_id: str, error: Exception) -> str:
    text = str(error)
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "trust_remote_code" in text:
        return (
            f"{model_id}: expected a model class shipped with transformers, found one that needs "
            "its author's code. Such code is never run here. Choose a model that transformers "
            "supports natively."
        )
    if "Unrecognized configuration class" in text:
        return (
            f"{model_id}: expected a causal language model, found a configuration that "
            "AutoModelForCausalLM does not know. It is probably an encoder, a vision or a speech "
            "model. Choose a model made to generate text."
        )
    return (
        f"{model_id}: expected a causal language model that transformers can load, found "
        f"{type(error).__name__}: {reason} The files are damaged, or need a newer transformers or "
        "an extra package. Fetch the model again or upgrade."
    )


def _load_tokenizer(identity: ModelIdentity) -> Any:
    names = {path.name for path in identity.folder.iterdir()}
    has_tiktoken = any(name.endswith(".tiktoken") for name in names)
    if not names.intersection(VOCABULARY_NAMES) and not has_tiktoken:
        raise ModelError(
            f"{identity.id}: expected tokenizer files (e.g. tokenizer.json) in {identity.folder}, "
            "found none. The model was saved without its tokenizer. Save it into the same folder "
            "with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(str(identity.folder), trust_remote_code=False)
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise ModelError(_explain_load_error(f"{identity.id} (tokenizer)", error)) from error


def _set_pad_token(tokenizer: Any, vocab: int) -> None:
    """Give a tokenizer a pad token the model knows; padding is masked, so any will do."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocab:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        )
