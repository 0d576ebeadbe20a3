"""Texts as tokens, in every stage alike: what a model sees before a text's first word.

Reads nothing; runs no model. A text begins with what the model's own tokenizer puts first (BOS, or
nothing), in generation, perplexity, states and activations; what a tokenizer puts *behind* a text
(EOS, [SEP]) ends it for a causal model, which would go on from an end, so it is left out
(docs/decisions/0061-chat-models.md). Of a chat model, a prompt is the user's message, and a text
that the model is to have written is its answer to `REQUEST`; what stands around them is
`chat.py`'s, and is context: read, never counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from eigenshift.base.errors import ModelError
from eigenshift.model.loading import LanguageModel, TextModel, require_known_tokens
from eigenshift.model.tokens import count_positions, find_start, limit_tokens

REQUEST = "Tell me something."
"""What the user says where a text is read as the model's answer to somebody."""
PROBE = "a"


class EncodedText(NamedTuple):
    """Tokens of a text and of what comes before it.

    Attributes:
        token_ids: All of them.
        n_context: The first so many are read and not counted: the template of a chat model, BOS,
            or else the first token, which is predicted from nothing.
    """

    token_ids: list[int]
    n_context: int


class ReadText(NamedTuple):
    """Tokens of a text that a model reads, and which of them are the text's own.

    Attributes:
        token_ids: All of them, at least one.
        counted: Those that activations are pooled over; the tokenizer's special tokens are among
            them, the template of a chat model is not.
    """

    token_ids: list[int]
    counted: slice

    @classmethod
    def all_of(cls, token_ids: list[int]) -> ReadText:
        """Tokens that all count."""
        return cls(token_ids, slice(0, len(token_ids)))


_beginnings: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()


def find_beginning(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before every text by itself."""
    if tokenizer not in _beginnings:
        plain = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        framed = list(tokenizer(PROBE)["input_ids"])
        places = range(len(framed) - len(plain) + 1)
        start = next((place for place in places if framed[place : place + len(plain)] == plain), 0)
        _beginnings[tokenizer] = framed[:start]
    return _beginnings[tokenizer]


def find_context(language_model: LanguageModel) -> list[int]:
    """What the first word of a text of the model's own is predicted from.

    Where its tokenizer puts nothing first, BOS (or EOS); empty if it has neither.

    Raises:
        ModelError: Its chat template refuses, or leaves no room.
    """
    if language_model.chat is not None:
        template = language_model.chat.encode(REQUEST).token_ids
        _require_room(language_model, len(template))
        return template
    start = find_start(language_model.tokenizer)
    return find_beginning(language_model.tokenizer) or ([] if start is None else [start])


def encode_text(language_model: LanguageModel, text: str, max_tokens: int) -> EncodedText:
    """A text whose likelihood is measured, as the model's own words.

    Truncated to `max_tokens`, those of a chat template not counted, and to the positions the model
    has.

    Raises:
        ModelError: A token is unknown to the model, or its chat template refuses.
    """
    tokenizer = language_model.tokenizer
    if language_model.chat is None:
        before = find_beginning(tokenizer)
    else:
        before = find_context(language_model)
        max_tokens += len(before)
    found = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    found = found[: limit_tokens(language_model.model, max_tokens)]
    require_known_tokens(language_model, found)
    return EncodedText(found, max(1, len(before)))


def _require_room(language_model: LanguageModel, n_template: int, n_new: int = 0) -> None:
    """Refuse a template that leaves no position for a text.

    Raises:
        ModelError: It does.
    """
    n_positions = count_positions(language_model.model)
    if n_positions is not None and n_template + n_new >= n_positions:
        raise ModelError(
            f"{language_model.id}: expected a chat template that leaves room for text in "
            f"{n_positions} positions, found one of {n_template} tokens with the system prompt"
            f"{f' and {n_new} tokens to generate' if n_new else ''}. Shorten model.system_prompt"
            f"{' or generation.n_tokens' if n_new else ''}, or set model.chat: off."
        )


def encode_prompt(
    language_model: LanguageModel, text: str, max_tokens: int, *, n_new: int = 0
) -> list[int]:
    """A prompt to be continued or answered: its end, where it is longer than `max_tokens`.

    What comes before it is kept; those of a chat template are not counted. A prompt that gives no
    token begins with BOS (or EOS).

    Args:
        language_model: Which reads it.
        text: The prompt.
        max_tokens: At most so many.
        n_new: Positions to leave free behind it.

    Raises:
        ModelError: A token is unknown to the model, its chat template refuses, or leaves no room.
    """
    if language_model.chat is not None:
        whole = language_model.chat.encode(text)
        _require_room(language_model, whole.n_template, n_new)
        limit = limit_tokens(language_model.model, max_tokens + whole.n_template + n_new) - n_new
        found = whole.shorten(limit, keep_end=True).token_ids
    else:
        max_tokens = max(1, limit_tokens(language_model.model, max_tokens + n_new) - n_new)
        before = find_beginning(language_model.tokenizer)
        own = language_model.tokenizer(text, add_special_tokens=False)["input_ids"]
        n_cut = len(own) - max(0, max_tokens - len(before))
        found = [*before, *own[max(0, n_cut) :]] or [find_start(language_model.tokenizer) or 0]
    require_known_tokens(language_model, found)
    return found


def encode_read_texts(
    text_model: TextModel, texts: Sequence[str], max_tokens: int
) -> tuple[list[ReadText], int]:
    """Texts that the model reads: of a chat model, what the user says to it.

    Encoders get all special tokens of their tokenizer, as they were trained.

    Args:
        text_model: The model.
        texts: Any.
        max_tokens: Longer texts keep their beginning; those of a chat template are not counted.

    Returns:
        The tokens of each text, and how many texts were truncated.

    Raises:
        ModelError: A token is unknown to the model, or its chat template refuses.
    """
    with text_model.lock:
        if isinstance(text_model, LanguageModel):
            found = [_read_text(text_model, text, max_tokens) for text in texts]
        else:
            found = _read_framed(text_model, texts, max_tokens)
    require_known_tokens(text_model, (token for item, _ in found for token in item.token_ids))
    return [item for item, _ in found], sum(is_cut for _, is_cut in found)


def _read_text(language_model: LanguageModel, text: str, max_tokens: int) -> tuple[ReadText, bool]:
    if language_model.chat is not None:
        whole = language_model.chat.encode(text)
        _require_room(language_model, whole.n_template)
        limit = limit_tokens(language_model.model, max_tokens + whole.n_template)
        shortened = whole.shorten(limit, keep_end=False)
        counted = slice(shortened.first, max(shortened.stop, shortened.first + 1))
        return ReadText(shortened.token_ids, counted), shortened is not whole
    tokenizer = language_model.tokenizer
    own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    found = [*find_beginning(tokenizer), *own]
    token_ids = found[:max_tokens] or [find_start(tokenizer) or 0]
    return ReadText.all_of(token_ids), len(found) > max_tokens


def _read_framed(
    text_model: TextModel, texts: Sequence[str], max_tokens: int
) -> list[tuple[ReadText, bool]]:
    """With all that the tokenizer puts around a text, kept when the text is cut."""
    tokenizer = text_model.tokenizer
    start = find_start(tokenizer) or 0
    found = []
    for text in texts:
        whole = list(tokenizer(text, verbose=False)["input_ids"])
        is_cut = len(whole) > max_tokens
        if is_cut:
            whole = list(tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"])
        token_ids = whole or [start]
        found.append((ReadText.all_of(token_ids), is_cut))
    return found
