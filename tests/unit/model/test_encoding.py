"""Texts as tokens: the same beginning in every stage, and no end where one goes on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from eigenshift.base.errors import ModelError
from eigenshift.model.chat import ChatFormat
from eigenshift.model.encoding import (
    REQUEST,
    encode_prompt,
    encode_read_texts,
    encode_text,
    find_beginning,
    find_context,
)
from eigenshift.model.loading import LanguageModel
from tests.support import chat_templates

TEXT = "The green garden was open."


def frame(tokenizer: Any, pattern: str) -> Any:
    """A copy of a tokenizer that puts its special token where the pattern says."""
    found = copy.deepcopy(tokenizer)
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single=pattern.replace("E", found.eos_token),
        special_tokens=[(found.eos_token, found.eos_token_id)],
    )
    return found


@pytest.fixture(params=["$A", "E $A", "$A E", "E $A E"])
def framed(request: pytest.FixtureRequest, tiny_language_model: LanguageModel) -> LanguageModel:
    """The tiny model, its tokenizer putting special tokens around a text in each way there is."""
    tokenizer = frame(tiny_language_model.tokenizer, request.param)
    return replace(tiny_language_model, tokenizer=tokenizer)


@pytest.fixture
def chatting(tiny_language_model: LanguageModel) -> LanguageModel:
    """The tiny model with a chat template."""
    tokenizer = copy.deepcopy(tiny_language_model.tokenizer)
    tokenizer.chat_template = chat_templates.PLAIN
    return replace(tiny_language_model, tokenizer=tokenizer, chat=ChatFormat(tokenizer, "a-model"))


def test_every_stage_begins_a_text_alike_and_ends_none(framed: LanguageModel) -> None:
    """What is put first is, what is put behind is not."""
    tokenizer = framed.tokenizer
    plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    before = find_beginning(tokenizer)
    assert before == (
        [tokenizer.eos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.eos_token_id else []
    )
    assert encode_prompt(framed, TEXT, 50) == before + plain
    assert encode_text(framed, TEXT, 50) == (before + plain, 1)
    ((read,), n_truncated) = encode_read_texts(framed, [TEXT], 50)
    assert (read.token_ids, read.counted, n_truncated) == (
        before + plain,
        slice(0, len(before + plain)),
        0,
    )


def test_a_cut_keeps_the_beginning_token(framed: LanguageModel) -> None:
    """The end of a prompt, the beginning of a text; what the tokenizer puts first is kept."""
    before = find_beginning(framed.tokenizer)
    plain = framed.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    n_own = 5 - len(before)
    assert encode_prompt(framed, TEXT, 5) == before + plain[-n_own:]
    assert encode_text(framed, TEXT, 5).token_ids == before + plain[:n_own]
    (read,), n_truncated = encode_read_texts(framed, [TEXT], 5)
    assert (read.token_ids, n_truncated) == (before + plain[:n_own], 1)


def test_nothing_begins_with_a_special_token(framed: LanguageModel) -> None:
    """No row is lost."""
    end = framed.tokenizer.eos_token_id
    assert encode_prompt(framed, "", 50) == [end]
    (read,), _ = encode_read_texts(framed, [""], 50)
    assert read.token_ids == [end]
    assert find_context(framed) == [end]


def test_a_chat_model_reads_messages_and_writes_answers(chatting: LanguageModel) -> None:
    """The template is context, never counted."""
    assert chatting.chat is not None
    asked = chatting.chat.encode(TEXT)
    assert encode_prompt(chatting, TEXT, 100) == asked.token_ids
    (read,), _ = encode_read_texts(chatting, [TEXT], 50)
    assert read == (asked.token_ids, slice(asked.first, asked.stop))
    context = chatting.chat.encode(REQUEST).token_ids
    plain = chatting.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert encode_text(chatting, TEXT, 50) == (context + plain, len(context))
    assert find_context(chatting) == context


def test_limits_are_of_the_text_and_not_of_the_template(chatting: LanguageModel) -> None:
    """A long template leaves the text its tokens."""
    whole = encode_text(chatting, TEXT, 50)
    cut = encode_text(chatting, TEXT, 3)
    assert (len(cut.token_ids) - cut.n_context, cut.n_context) == (3, whole.n_context)
    (read,), n_truncated = encode_read_texts(chatting, [TEXT], 3)
    assert (read.counted.stop - read.counted.start, n_truncated) == (3, 1)
    asked = chatting.chat.encode(TEXT)
    prompt = encode_prompt(chatting, TEXT, 3, n_new=4)
    own = asked.token_ids[asked.first : asked.stop]
    assert prompt == [
        *asked.token_ids[: asked.first],
        *own[-3:],
        *asked.token_ids[asked.stop :],
    ]


def test_a_prompt_leaves_room_for_what_is_generated(chatting: LanguageModel) -> None:
    """However long it is; of the template nothing is lost."""
    n_positions = chatting.model.config.max_position_embeddings
    for text in (TEXT * 20, TEXT):
        found = encode_prompt(chatting, text, 1_000, n_new=10)
        assert len(found) <= n_positions - 10
        assert found[-3:] == chatting.chat.encode(TEXT).token_ids[-3:]


def test_a_template_that_leaves_no_room_is_refused(chatting: LanguageModel) -> None:
    """In every way a text is read, and with the setting that may help."""
    long = replace(
        chatting, chat=ChatFormat(chatting.tokenizer, "a-model", system_prompt="kind " * 60)
    )
    for encode in (
        lambda: encode_text(long, TEXT, 50),
        lambda: find_context(long),
        lambda: encode_prompt(long, TEXT, 50),
        lambda: encode_read_texts(long, [TEXT], 50),
    ):
        with pytest.raises(ModelError, match=r"leaves room.*Shorten model\.system_prompt"):
            encode()
    with pytest.raises(ModelError, match=r"60 tokens to generate.*generation\.n_tokens"):
        encode_prompt(chatting, TEXT, 50, n_new=60)
