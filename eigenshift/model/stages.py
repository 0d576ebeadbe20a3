"""The stage of this room: which model it is, and what it looks like."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from eigenshift.settings import ModelSettings, RefreshSettings
from eigenshift.stages.inputs import Inputs, Outside
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage


class Weights(Outside):
    """A model's files, wherever they lie."""

    kind: ClassVar[str] = "weights"
    model: ModelSettings

    def identify(self) -> str:
        """Digest of weights, configuration and tokenizer files."""
        from eigenshift.model.files import identify_model

        return identify_model(self.model).digest


class IdentityInputs(Inputs):
    """The model."""

    weights: Annotated[Weights, Reads("model", fields=("model.id", "model.revision"))]


class ChatKey(Key):
    """What of a conversation is not the model's own: its template is among its files."""

    system_prompt: Annotated[str | None, Reads("model.system_prompt")]


class IdentityKey(Key):
    """The precision it is loaded in, and how it is talked to; None: by raw text."""

    dtype: Annotated[str, Reads("model.dtype")]
    chat: Annotated[
        ChatKey | None, Reads("model.chat", fields=("model.chat", "model.system_prompt"))
    ]

    @classmethod
    def of(cls, settings: RefreshSettings, **given: Any) -> Self:  # type: ignore[override]
        """As if the model had a chat template."""
        chat = None if settings.model.chat == "off" else ChatKey.of(settings)
        return super().of(settings, **{"chat": chat} | given)

    @classmethod
    def of_model(cls, settings: RefreshSettings) -> Self:
        """Whether there is a template to talk by, the model's folder says.

        Raises:
            ModelError: There is no such model, or it lacks a template that is asked for.
        """
        from eigenshift.model.files import identify_model, uses_chat

        model = settings.model
        is_chat = uses_chat(model, identify_model(model).folder)
        return cls.of(settings, **({} if is_chat else {"chat": None}))

    @model_serializer(mode="wrap")
    def _leave_out_no_chat(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Raw text is as it was before there were chats, and so is its fingerprint."""
        document: dict[str, Any] = handler(self)
        return {name: value for name, value in document.items() if value is not None}


IDENTIFY_MODEL = Stage(
    name="identify_model",
    kind="model",
    version=5,
    inputs=IdentityInputs,
    key=IdentityKey,
    files=("model.json",),
    work="eigenshift.model.description:carry_out",
    runs_model=True,
)
