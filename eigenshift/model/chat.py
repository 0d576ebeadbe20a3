"""A model's chat template: what stands around a user's message before the model answers.

Renders by the tokenizer's own template, which writes BOS itself where the model has one; reads no
files and runs no model. Which texts become messages is `encoding.py`'s.

A message that holds the name of a special token stays text: a comment that quotes `</s>` does not
end the user's turn.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from eigenshift.base.errors import ModelError

logger = logging.getLogger(__name__)

PROBE = "A question about the weather."
"""Stands for a message when a template is looked at."""
THOUGHT_MARKS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<|channel|>": "<|message|>"}
"""What opens and what closes a block of reasoning, in the templates of reasoning models."""


@dataclass(frozen=True)
class Conversation:
    """A conversation as tokens, up to where the model answers.

    Attributes:
        token_ids: All of it, template and message.
        first: Place of the message's first token.
        stop: Place behind its last.
    """

    token_ids: list[int]
    first: int
    stop: int

    @property
    def n_template(self) -> int:
        """Tokens that are not the message's."""
        return len(self.token_ids) - (self.stop - self.first)

    def shorten(self, limit: int, *, keep_end: bool) -> Conversation:
        """At most so many tokens, the template whole and the message cut, if it can be.

        A template longer than the limit keeps one token of the message.
        """
        excess = min(len(self.token_ids) - limit, self.stop - self.first - 1)
        if excess <= 0:
            return self
        cut = self.first if keep_end else self.stop - excess
        rest = self.token_ids[:cut] + self.token_ids[cut + excess :]
        return Conversation(rest, self.first, self.stop - excess)


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """How a model's conversations are written.

    Attributes:
        tokenizer: The model's tokenizer, with a chat template.
        model_id: For errors.
        system_prompt: The system message; None leaves it to the template, which may have one of
            its own.
    """

    tokenizer: Any
    model_id: str
    system_prompt: str | None = None

    @cached_property
    def source(self) -> str:
        """The template itself."""
        source: str = self.tokenizer.get_chat_template()
        return source

    @property
    def digest(self) -> str:
        """Of the template and the system message."""
        system = "" if self.system_prompt is None else f"\0{self.system_prompt}"
        return hashlib.sha256(f"{self.source}{system}".encode()).hexdigest()

    def check(self) -> None:
        """Look at the template once, before anything is computed.

        Raises:
            ModelError: It refuses or drops the system message, changes the user's words, or lets
                the model think before it answers, so that thoughts would be judged as the answer.
        """
        before, after = self.frame
        if self.system_prompt and self.system_prompt.strip() not in before:
            raise ModelError(
                f"{self.model_id}: expected the system prompt in what the chat template writes, "
                "found it dropped. The model has no system role. Leave model.system_prompt empty."
            )
        for opening, closing in THOUGHT_MARKS.items():
            if opening in after and closing not in after.rpartition(opening)[2]:
                raise ModelError(
                    f"{self.model_id}: expected a chat template after which the model answers, "
                    f"found one that leaves {opening} open although it was asked not to think. "
                    "What is generated would be thoughts. Choose a model whose thinking can be "
                    "switched off (enable_thinking), or set model.chat: off."
                )
            if opening in self.source and closing in self.source and opening not in after:
                logger.warning(
                    "%s: its chat template knows %s and does not close it before the answer; if "
                    "the model thinks first, its thoughts are judged as its answer",
                    self.model_id,
                    opening,
                )

    def encode(self, message: str) -> Conversation:
        """Tokens of a conversation in which the user says something.

        Raises:
            ModelError: The template refuses the conversation, or changes the message by more than
                the blanks around it.
        """
        before, after = self.frame
        rendered = self.render(message)
        for text in (message, message.strip(), message.lstrip(), message.rstrip()):
            if rendered == before + text + after:
                return self._tokenize(before, text, after)
        raise ModelError(
            f"{self.model_id}: expected the chat template to write a user's words as they are, "
            "found them changed, or what stands around them. What the model reads could not be "
            "told from the template. Set model.chat: off, or leave such texts out."
        )

    @cached_property
    def frame(self) -> tuple[str, str]:
        """What stands before and after a user's message, up to where the model answers.

        Raises:
            ModelError: As `encode`.
        """
        before, found, after = self.render(PROBE).partition(PROBE)
        if not found:
            raise ModelError(
                f"{self.model_id}: expected a user's message in what the chat template writes, "
                "found it changed or left out. Set model.chat: off."
            )
        return before, after

    def render(self, message: str) -> str:
        """A conversation in which the user says something, as the template writes it.

        Raises:
            ModelError: The template refuses it.
        """
        system = [] if self.system_prompt is None else [("system", self.system_prompt)]
        messages = [
            {"role": role, "content": content} for role, content in [*system, ("user", message)]
        ]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = "a user's message" if not system else "a system and a user's message"
            remedy = "set model.chat: off" if not system else "leave model.system_prompt empty"
            raise ModelError(
                f"{self.model_id}: expected a chat template that takes {roles}, found one that "
                f"refuses: {_shorten(error)}. If it has no such role, {remedy}."
            ) from error
        return rendered

    def _tokenize(self, before: str, message: str, after: str) -> Conversation:
        """In one go where the tokenizer tells places, so that tokens may reach over the seams."""
        holds_special = any(name in message for name in self._special_names)
        if self.tokenizer.is_fast and not holds_special and message:
            found = self.tokenizer(
                before + message + after, add_special_tokens=False, return_offsets_mapping=True
            )
            start, end = len(before), len(before) + len(message)
            inside = [
                place
                for place, (first, stop) in enumerate(found["offset_mapping"])
                if first < end and stop > start
            ]
            if inside:
                return Conversation(list(found["input_ids"]), inside[0], inside[-1] + 1)
        parts = [
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=is_message)[
                "input_ids"
            ]
            for text, is_message in ((before, False), (message, True), (after, False))
        ]
        first = len(parts[0])
        return Conversation([*parts[0], *parts[1], *parts[2]], first, first + len(parts[1]))

    @cached_property
    def _special_names(self) -> list[str]:
        """Every text that the tokenizer takes for a token of its own."""
        return [token.content for token in self.tokenizer.added_tokens_decoder.values()]


def _shorten(error: Exception) -> str:
    """First line of a template's own error; a template's text, never a message's."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
