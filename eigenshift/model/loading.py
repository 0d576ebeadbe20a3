"""Load language models: causal ones with their head, encoders for what they detect.

Only safetensors weights and the classes shipped with transformers are used: nothing is unpickled
and no code of the model's author runs. Where the files are and which model they are is in
`files.py`, what the output head does in `heads.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from eigenshift.base.errors import ModelError
from eigenshift.model.batching import free_memory, is_out_of_memory
from eigenshift.model.chat import ChatFormat
from eigenshift.model.classes import choose_auto_class, find_class
from eigenshift.model.device_maps import Division, plan_division
from eigenshift.model.devices import resolve_device
from eigenshift.model.divided import find_device, find_entry_device, is_divided
from eigenshift.model.files import ModelIdentity, identify_model, uses_chat
from eigenshift.model.heads import HeadDescription, describe_head
from eigenshift.model.kinds import ModelKind, explain_no_head
from eigenshift.model.layers import fuse_activations, get_trunk, keep_codes
from eigenshift.model.loaded_files import has_vocabulary, names_authors_code, read_keys
from eigenshift.model.parameter_names import build_skeleton, list_absent
from eigenshift.model.weight_loading import keep_files, load_weights
from eigenshift.model.wrapped_names import explain_prefix, find_prefix
from eigenshift.settings import ModelSettings, Placement

logger = logging.getLogger(__name__)

MAX_LOADED_MODELS = 1
"""Models kept in memory by this process; a refresh studies one."""

_loaded: dict[tuple[str | None, ...], TextModel] = {}
_loading = threading.Lock()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextModel:
    """A model that reads text, ready to run.

    Attributes:
        model: The `PreTrainedModel`, in eval mode, without gradients; of an encoder-decoder its
            encoder. On `device`, or divided over several places (`divided.py`).
        tokenizer: Its tokenizer; always has a pad token.
        kind: How it reads; the encoder of an encoder-decoder keeps that kind.
        vocab: Number of tokens it knows.
        id: As given in the settings.
        digest: Digest of its files (`ModelIdentity.digest`).
        device: Where it runs. Of a divided model where its head is, of one without a head where
            tokens enter: whatever is given to `model` there comes back there.
        chat: How its conversations are written; None where it is studied on raw text.
        lock: Held while hooks are on the model or its tokenizer is used, so that two tasks in
            one process do not read each other's states. Re-entrant.
    """

    model: Any
    tokenizer: Any
    kind: ModelKind
    vocab: int
    id: str
    digest: str
    device: torch.device
    chat: ChatFormat | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)  # type: ignore[valid-type, unused-ignore]

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        return get_trunk(self.model)

    @property
    def entry_device(self) -> torch.device:
        """Where the trunk takes its inputs; `device`, unless the model is divided."""
        return find_entry_device(self.model) if is_divided(self.model) else self.device


@dataclass(frozen=True, eq=False, kw_only=True)
class LanguageModel(TextModel):
    """A causal language model ready to run.

    Attributes:
        head: What its output head does.
    """

    head: HeadDescription

    @property
    def head_module(self) -> nn.Linear:
        """The output head itself."""
        module: nn.Linear = self.model.get_submodule(self.head.name)
        return module

    @property
    def head_weight(self) -> Tensor:
        """The head's weight in force, shape (vocab, hidden)."""
        return self.head_module.weight


def load_text_model(settings: ModelSettings, device: str | Placement = "auto") -> TextModel:
    """Load a model that reads text, or return it if this process has it already.

    Args:
        settings: Which model, at which precision.
        device: "auto", "cpu", "cuda", "cuda:1"; or how it is divided.

    Returns:
        A `LanguageModel` if it is causal; of an encoder-decoder only the encoder.

    Raises:
        ModelError: It cannot be identified or loaded, needs its author's code, or is causal and
            has a head that is not supported.
        SettingsError: There is no such device here, or the model cannot be divided as asked.
    """
    identity = identify_model(settings)
    placement = Placement(device=device) if isinstance(device, str) else device
    place = resolve_device(placement.device)
    key = (
        *(identity.digest, settings.dtype, str(place), settings.chat, settings.system_prompt),
        placement.model_dump_json(include=set(Placement.model_fields) - {"device"}),
    )
    with _loading:
        if key not in _loaded:
            if len(_loaded) >= MAX_LOADED_MODELS:
                _forget(len(_loaded) - MAX_LOADED_MODELS + 1)
            division = None
            if placement.device_map is not None:
                division = find_division(settings, placement, identity.folder)
            logger.info("model loading: id=%s device=%s dtype=%s", identity.id, place, key[1])
            model, kind = _load_weights(
                identity, settings.dtype, place, division, placement.offload_folder
            )
            tokenizer = _load_tokenizer(identity)
            if kind is ModelKind.causal:
                chat = _find_chat(settings, identity, tokenizer)
                wrap: Any = partial(wrap_model, chat=chat)
            else:
                wrap = partial(wrap_encoder, kind=kind)
            try:
                found = wrap(model, tokenizer, model_id=identity.id, digest=identity.digest)
            except RuntimeError as error:
                if not is_divided(model) or is_out_of_memory(error):
                    raise
                raise ModelError(_explain_not_divisible(identity.id, model, error)) from error
            _loaded[key] = found
        return _loaded[key]


def load_model(settings: ModelSettings, device: str | Placement = "auto") -> LanguageModel:
    """Load a causal language model, or return it if this process has it already.

    Raises:
        ModelError: As `load_text_model`, or it is not a causal language model.
        SettingsError: As `load_text_model`.
    """
    kind = find_kind(_read_config(identify_model(settings)))
    if kind is not ModelKind.causal:
        raise ModelError(explain_no_head(settings.id, kind))
    found = load_text_model(settings, device)
    assert isinstance(found, LanguageModel)  # noqa: S101 - by its kind
    return found


@contextmanager
def use_text_model(
    settings: ModelSettings, device: str | Placement = "auto"
) -> Iterator[TextModel]:
    """Load a model and have it to oneself: its lock is held until the end of the block.

    Tasks in one process share one model; without this one task could run with another's hooks or
    patched head.

    Raises:
        ModelError, SettingsError: As `load_text_model`.
    """
    text_model = load_text_model(settings, device)
    with text_model.lock:
        yield text_model


@contextmanager
def use_model(settings: ModelSettings, device: str | Placement = "auto") -> Iterator[LanguageModel]:
    """Load a causal language model and have it to oneself, as `use_text_model`.

    Raises:
        ModelError, SettingsError: As `load_model`.
    """
    language_model = load_model(settings, device)
    with language_model.lock:
        yield language_model


def forget_models() -> None:
    """Drop the models this process keeps, so that their memory can be freed."""
    with _loading:
        _forget(len(_loaded))


def _forget(n_models: int) -> None:
    """Drop the models that were loaded first."""
    dropped = [_loaded.pop(key) for key in list(_loaded)[:n_models]]
    has_cycles = any(is_divided(text_model.model) for text_model in dropped)
    del dropped
    if has_cycles:  # a divided model's modules hold themselves: nothing else would free it now
        free_memory()


def wrap_model(
    model: Any, tokenizer: Any, *, model_id: str, digest: str, chat: ChatFormat | None = None
) -> LanguageModel:
    """Make a `LanguageModel` of a model and tokenizer already in memory.

    Args:
        model: A `PreTrainedModel` on its device; put into eval mode here.
        tokenizer: Given a pad token here if it has none.
        model_id: Name for people.
        digest: What identifies the weights.
        chat: How its conversations are written; None: raw text.

    Raises:
        ModelError: Its head is not supported, or it is not causal.
    """
    _prepare(model)
    head = describe_head(model)
    _set_pad_token(tokenizer, head.vocab)
    if len(tokenizer) > head.vocab:
        logger.warning(
            "tokenizer larger than the head: tokens=%d vocab=%d; ids beyond are refused when met",
            len(tokenizer),
            head.vocab,
        )
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        kind=ModelKind.causal,
        vocab=head.vocab,
        id=model_id,
        digest=digest,
        device=find_device(model.get_output_embeddings()),
        head=head,
        chat=chat,
    )


def wrap_encoder(
    model: Any, tokenizer: Any, *, model_id: str, digest: str, kind: ModelKind = ModelKind.encoder
) -> TextModel:
    """Make a `TextModel` of an encoder and tokenizer already in memory, as `wrap_model` does."""
    _prepare(model)
    embedding = model.get_input_embeddings()
    vocab = len(embedding.weight)
    _set_pad_token(tokenizer, vocab)
    return TextModel(
        model=model,
        tokenizer=tokenizer,
        kind=kind,
        vocab=vocab,
        id=model_id,
        digest=digest,
        device=find_device(embedding),
    )


def require_known_tokens(text_model: TextModel, token_ids: Iterable[int]) -> None:
    """Refuse token ids that the model has no row for.

    Raises:
        ModelError: There is one.
    """
    largest = max(token_ids, default=0)
    if largest >= text_model.vocab:
        raise ModelError(
            f"{text_model.id}: expected token ids below {text_model.vocab}, found "
            f"{largest}. The tokenizer has tokens the model does not know; it is probably of "
            "another model. Use the model's own tokenizer files."
        )


def _prepare(model: Any) -> None:
    model.eval()
    model.requires_grad_(False)
    fuse_activations(model)
    keep_codes(model)


def find_division(
    settings: ModelSettings, placement: Placement, folder: Path | None = None
) -> Division:
    """Where the parts of a divided model would be, from its configuration; nothing is loaded.

    Args:
        settings: Which model, at which precision.
        placement: Whose `device_map` is set.
        folder: With its configuration; None: where the model is found.

    Raises:
        ModelError: Its files are not there, or its structure is not understood.
        SettingsError: It cannot be divided as asked.
    """
    place = identify_model(settings).folder if folder is None else folder
    try:
        config = AutoConfig.from_pretrained(str(place), trust_remote_code=False)
        is_causal = find_kind(config) is ModelKind.causal
        skeleton = build_skeleton(place, is_causal=is_causal)
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(_explain_load_error(settings.id, error)) from error
    if settings.dtype != "auto":
        skeleton = skeleton.to(getattr(torch, settings.dtype))
    return plan_division(skeleton, placement, is_causal=is_causal)


def _load_weights(
    identity: ModelIdentity,
    dtype: str,
    place: torch.device,
    division: Division | None,
    offload_folder: str | None,
) -> tuple[Any, ModelKind]:
    """Load a model to its place; every weight that is read must come from the files."""
    transformers_logging.disable_progress_bar()
    folder = str(identity.folder)
    config = _read_config(identity)
    if hasattr(config, "rescale_every"):
        # RWKV would divide weights of its later layers at the first pass, for float16's sake, and
        # `save_pretrained` would write them so: what is measured must be what is in the files
        config.rescale_every = 0
    kind = find_kind(config)
    _require_class(identity, config)
    model_class = choose_auto_class(config) if kind is ModelKind.causal else AutoModel
    _refuse_further_files(identity, config)
    if names_authors_code(identity.folder):
        logger.warning(
            "%s: config.json names code of its author (auto_map), which is not run; what is "
            "studied is the class of transformers",
            identity.id,
        )
    try:
        model, report = load_weights(
            model_class,
            folder,
            place,
            division,
            offload_folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
        )
    except (SafetensorError, ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(
            _explain_load_error(identity.id, error, _find_quantiser(config))
        ) from error
    absent = sorted(report["missing_keys"]) + sorted(
        str(item[0]) if isinstance(item, tuple) else str(item) for item in report["mismatched_keys"]
    )
    if kind is not ModelKind.causal:
        absent = [name for name in absent if "pooler" not in name.split(".")]
    if absent:
        raise ModelError(
            _explain_absent(identity.id, type(model).__name__, absent, report["unexpected_keys"])
        )
    if kind is ModelKind.encoder_decoder:
        whole, model = model, model.get_encoder()
        keep_files(model, whole)
    return model, kind


def check_weight_names(identity: ModelIdentity) -> None:
    """Refuse a causal language model whose weights would be random, by names alone.

    Nothing is loaded. Encoders and quantised weights are told when they are loaded.

    Raises:
        ModelError: It cannot be built, or its files lack weights of it.
    """
    config = _read_config(identity)
    if find_kind(config) is not ModelKind.causal or hasattr(config, "quantization_config"):
        return
    try:
        skeleton = build_skeleton(identity.folder)
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(_explain_load_error(identity.id, error)) from error
    keys = read_keys(identity.folder, identity.files)
    absent = list_absent(skeleton, keys)
    if absent:
        raise ModelError(_explain_absent(identity.id, type(skeleton).__name__, absent, keys))


def _explain_absent(
    model_id: str, class_name: str, absent: Sequence[str], unmatched: Iterable[str]
) -> str:
    """Why weights are missing: they are under another name, or they are not there."""
    keys = sorted(unmatched)
    prefix = find_prefix(absent, keys)
    if prefix is not None:
        wrapped = [key for key in keys if key.startswith(prefix)]
        plain = wrapped[0].removeprefix(prefix)
        return f"{model_id}: {explain_prefix(wrapped, len(keys), f'with {prefix!r}', plain)}"
    return (
        f"{model_id}: expected every weight of {class_name} in the files, found {len(absent)} "
        f"missing or of another shape, e.g. {absent[0]}. They would be random. The weights are "
        "probably of a trunk or another task; choose a causal language model."
    )


def _refuse_further_files(identity: ModelIdentity, config: Any) -> None:
    """Weights that a class of transformers reads beside those every model has."""
    further = [
        name
        for name in getattr(type(config), "extra_files", ())
        if (identity.folder / name).is_file() and name not in identity.files
    ]
    if further:
        raise ModelError(
            f"{identity.id}: expected all weights in the files every model has, found "
            f"{', '.join(further)}, which {type(config).__name__} reads too. Such models are not "
            "supported. Choose another."
        )


def _read_config(identity: ModelIdentity) -> Any:
    try:
        return AutoConfig.from_pretrained(str(identity.folder), trust_remote_code=False)
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(_explain_load_error(identity.id, error)) from error


def find_class_name(identity: ModelIdentity) -> str:
    """Name of the class a model will be loaded as; only its configuration is read.

    Raises:
        ModelError: transformers has none for it, or cannot read the configuration.
    """
    return _require_class(identity, _read_config(identity)).__name__


def _require_class(identity: ModelIdentity, config: Any) -> type[Any]:
    found = find_class(config, is_causal=find_kind(config) is ModelKind.causal)
    if found is None:
        raise ModelError(
            f"{identity.id}: expected a causal language model or an encoder, found a "
            f"configuration ({config.model_type}) that transformers has no class for, neither for "
            "text nor for images and text. It is probably a vision or a speech model. Choose a "
            "model made to read or generate text."
        )
    return found


def find_kind(config: Any) -> ModelKind:
    """Tell from its configuration how a model reads text.

    An encoder is of a type that transformers trains to fill in masked tokens and does not decode,
    though many such types have a causal class too.
    """
    if config.is_encoder_decoder:
        return ModelKind.encoder_decoder
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return ModelKind.encoder
    return ModelKind.causal


def _find_quantiser(config: Any) -> str | None:
    """What a model's weights were quantised by, None if they were not."""
    described = getattr(config, "quantization_config", None)
    if described is None:
        return None
    method = described.get("quant_method") if isinstance(described, dict) else None
    return str(getattr(method, "value", method) or "an unnamed method")


def _explain_load_error(model_id: str, error: Exception, quantiser: str | None = None) -> str:
    text = str(error)
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if quantiser is not None:
        return (
            f"{model_id}: expected weights quantised by {quantiser} to load here, found "
            f"{type(error).__name__}: {reason} They need the package that transformers names for "
            "this method, and some need a GPU. Install it, or use weights that are not quantised; "
            "docs/quantisation.md says what was tried."
        )
    if "trust_remote_code" in text:
        return (
            f"{model_id}: expected a model class shipped with transformers, found one that needs "
            "its author's code. Such code is never run here. Choose a model that transformers "
            "supports natively."
        )
    return (
        f"{model_id}: expected a causal language model that transformers can load, found "
        f"{type(error).__name__}: {reason} The files are damaged, or need a newer transformers or "
        "an extra package. Fetch the model again or upgrade."
    )


def _explain_not_divisible(model_id: str, model: Any, error: Exception) -> str:
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    return (
        f"{model_id}: expected {type(model).__name__} to run with the parts that "
        f"execution.device_map puts elsewhere, found {type(error).__name__}: "
        f"{str(error).strip().splitlines()[0]} Its code asks a weight that is not there for its "
        f"device. Keep {name} where the head is, and more if that is not enough, or leave "
        "execution.device_map empty."
    )


def _load_tokenizer(identity: ModelIdentity) -> Any:
    if not has_vocabulary(identity.folder):
        raise ModelError(
            f"{identity.id}: expected tokenizer files (e.g. tokenizer.json) in {identity.folder}, "
            "found none. The model was saved without its tokenizer. Save it into the same folder "
            "with tokenizer.save_pretrained."
        )
    try:
        return AutoTokenizer.from_pretrained(str(identity.folder), trust_remote_code=False)
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise ModelError(_explain_load_error(f"{identity.id} (tokenizer)", error)) from error


def _find_chat(
    settings: ModelSettings, identity: ModelIdentity, tokenizer: Any
) -> ChatFormat | None:
    """How a model's conversations are written, its template looked at; None for raw text."""
    if not uses_chat(settings, identity.folder):
        return None
    chat = ChatFormat(tokenizer, identity.id, settings.system_prompt)
    chat.check()
    return chat


def _set_pad_token(tokenizer: Any, vocab: int) -> None:
    """Give a tokenizer a pad token the model knows; padding is masked, so any will do."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocab:
        tokenizer.pad_token = (
            tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        )
