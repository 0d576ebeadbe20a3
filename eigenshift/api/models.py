"""The model under study: loaded from a folder or the hub, or somebody's own object.

An object is worked on where it lies: nothing is copied to disk or to another device, a head may be
tied or not. Which heads are understood is `model/heads.py`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from eigenshift.api.representations import Panel, Shown
from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.model.chat import ChatFormat
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, forget_models, wrap_model
from eigenshift.model.loading import load_model as load_files
from eigenshift.settings import ModelSettings, parse_section


@dataclass(frozen=True, eq=False, repr=False)
class Model(Shown):
    """A causal language model that can be studied and patched.

    Attributes:
        language_model: What the library's own functions take.
        name: For people.
    """

    language_model: LanguageModel
    name: str
    _state: _State = field(repr=False)

    @property
    def model(self) -> Any:
        """The `PreTrainedModel` itself."""
        return self.language_model.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.language_model.tokenizer

    def give_back(self) -> None:
        """Put back what `load_model` changed of an object: mode, gradients, activation functions.

        The model cannot be studied any more then; load it again. Undo patches first.
        """
        self._state.restore()

    def describe(self) -> Panel:
        """Class, size, head."""
        head = self.language_model.head
        n_parameters = sum(item.numel() for item in self.model.parameters())
        rows = [
            ("class", type(self.model).__name__),
            ("parameters", f"{n_parameters:,}"),
            (
                "head",
                f"{head.vocab:,} tokens x {head.hidden:,}, {'tied' if head.is_tied else 'own'}",
            ),
            ("precision", str(head.dtype).removeprefix("torch.")),
            ("device", str(self.language_model.device)),
            ("texts", "raw" if self.language_model.chat is None else "by the chat template"),
        ]
        return Panel(f"model {self.name}", ("", "value"), rows)


@dataclass(frozen=True)
class _State:
    """What is changed of a model that is studied, as it was."""

    modes: list[tuple[nn.Module, bool]]
    gradients: list[tuple[nn.Parameter, bool]]
    children: list[tuple[nn.Module, str, nn.Module]]

    @classmethod
    def of(cls, model: nn.Module) -> _State:
        """As it is now."""
        modules = list(model.modules())
        return cls(
            [(module, module.training) for module in modules],
            [(parameter, parameter.requires_grad) for parameter in model.parameters()],
            [
                (module, name, child)
                for module in modules
                for name, child in module.named_children()
            ],
        )

    def restore(self) -> None:
        """Put all of it back."""
        for module, name, child in self.children:
            if getattr(module, name) is not child:
                setattr(module, name, child)
        for module, is_training in self.modes:
            module.training = is_training
        for parameter, has_gradient in self.gradients:
            parameter.requires_grad_(has_gradient)


def load_model(
    model: Any, tokenizer: Any = None, *, device: str | None = None, **settings: Any
) -> Model:
    """Load a causal language model, or take one that is in memory.

    Args:
        model: A folder or hub id (safetensors), `ModelSettings`, or a `PreTrainedModel`. An object
            is put into eval mode and its parameters need no gradients meanwhile
            (`Model.give_back`).
        tokenizer: Of an object; given a pad token if it has none.
        device: Where files are loaded to, by default a GPU if there is one; an object stays where
            it is.
        settings: Fields of `ModelSettings` (docs/settings.md, section model): revision, dtype,
            name, chat, system_prompt. Of an object only the last three.

    Raises:
        ModelError: It cannot be loaded, is not causal, or has a head that is not supported.
        SettingsError: A setting does not fit.
    """
    if not isinstance(model, str | Path | ModelSettings):
        return _take_object(model, tokenizer, device, settings)
    if tokenizer is not None:
        raise SettingsError(
            "load_model: expected a tokenizer beside a model in memory only, found one beside "
            "files, which have their own. Leave it out."
        )
    document = model.model_dump() if isinstance(model, ModelSettings) else {"id": str(model)}
    chosen = parse_section(ModelSettings, {**document, **settings}, "load_model")
    loaded = load_files(chosen, device or "auto")
    forget_models()  # a model that somebody patches is nobody else's
    return Model(loaded, chosen.name or _name_files(chosen.id), _State.of(loaded.model))


def _name_files(place: str) -> str:
    """A folder's own name, without the path to it; a hub id as it is."""
    return Path(place).resolve().name if Path(place).is_dir() else place


def _take_object(model: Any, tokenizer: Any, device: str | None, settings: dict[str, Any]) -> Model:
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ModelError(
            f"load_model: expected a folder, a hub id or a PreTrainedModel, found a "
            f"{type(model).__name__}."
        )
    unfit = sorted(({"device"} if device else set()) | (settings.keys() & {"dtype", "revision"}))
    if tokenizer is None or unfit:
        found = f"{', '.join(unfit)}, which are of files" if unfit else "no tokenizer"
        raise SettingsError(
            "load_model: expected a model in memory with its tokenizer and as it is, found "
            f"{found}. Call load_model(model, tokenizer), having moved or converted it yourself."
        )
    place = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    chosen = parse_section(ModelSettings, {"id": place, **settings}, "load_model")
    name = chosen.name or _name_files(place)
    state = _State.of(model)
    try:
        wrapped = wrap_model(
            model,
            tokenizer,
            model_id=name,
            digest=identify_weights(model),
            chat=_find_chat(chosen, tokenizer, name),
        )
    except ModelError:
        state.restore()
        raise
    return Model(wrapped, name, state)


def _find_chat(settings: ModelSettings, tokenizer: Any, name: str) -> ChatFormat | None:
    """How conversations are written, by the tokenizer's template; None: raw text."""
    if settings.chat == "off" or not getattr(tokenizer, "chat_template", None):
        if settings.chat == "on" or settings.system_prompt is not None:
            raise ModelError(
                f"{name}: expected a chat template in the tokenizer, found none, or chat: off. "
                "Leave chat and system_prompt out."
            )
        return None
    chat = ChatFormat(tokenizer, name, settings.system_prompt)
    chat.check()
    return chat


def identify_weights(model: Any) -> str:
    """A digest that tells models in memory apart: all names and shapes, the bytes of the head.

    A patch is held against the bytes of every parameter it changes besides (`patching.py`).
    """
    lines = [
        f"{name}:{parameter.dtype}:{tuple(parameter.shape)}"
        for name, parameter in model.named_parameters()
    ]
    head = model.get_output_embeddings()
    if head is not None:
        lines.append(digest_tensor(head.weight))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
