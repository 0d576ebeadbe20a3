"""Chat templates: what stands around a message, whatever the message is."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eigenshift.base.errors import ModelError
from eigenshift.model.chat import ChatFormat
from tests.support import chat_templates

SYSTEM = "Answer in one sentence."
ACCEPTING = {
    name: getattr(chat_templates, name)
    for name in ("CHATML", "STRIPPING", "NO_SYSTEM", "FOLDING", "SWITCHED_THINKING")
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Any) -> Any:
    """The tiny tokenizer with the marks of turns as tokens of their own."""
    found = copy.deepcopy(tiny_tokenizer)
    found.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    return found


def make_format(tokenizer: Any, template: str, system_prompt: str | None = None) -> ChatFormat:
    """A format by a template, its tokenizer a copy."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, "a-model", system_prompt)


@pytest.mark.parametrize("template", ACCEPTING.values(), ids=ACCEPTING)
@pytest.mark.parametrize("message", ["How are you?", "  blanks around  ", "two\n\nlines"])
def test_tokens_are_those_of_transformers(tokenizer: Any, template: str, message: str) -> None:
    """As `apply_chat_template` gives them, and the message where it is said to be."""
    chat = make_format(tokenizer, template)
    chat.check()
    expected = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )
    found = chat.encode(message)
    assert found.token_ids == expected
    own = chat.tokenizer.decode(found.token_ids[found.first : found.stop])
    assert own.strip() == message.strip()


@pytest.mark.parametrize("template", ACCEPTING.values(), ids=ACCEPTING)
def test_there_is_one_bos_at_most(tokenizer: Any, template: str) -> None:
    """Templates that write BOS do so themselves; the tokenizer adds none."""
    chat = make_format(tokenizer, template)
    n_written = template.count("{{ bos_token }}")
    bos = chat.tokenizer.bos_token_id
    assert chat.encode("Hello.").token_ids.count(bos) == n_written


@pytest.mark.parametrize("template", ["CHATML", "STRIPPING", "FOLDING"])
def test_the_system_prompt_is_put_where_the_template_has_it(tokenizer: Any, template: str) -> None:
    """In place of the template's own, where it has one."""
    chat = make_format(tokenizer, getattr(chat_templates, template), SYSTEM)
    chat.check()
    before, _ = chat.frame
    assert SYSTEM in before
    assert "friendly helper" not in before


def test_a_templates_own_system_message_stands_where_none_is_given(tokenizer: Any) -> None:
    """None leaves it; an empty one takes its place."""
    before, _ = make_format(tokenizer, chat_templates.CHATML).frame
    assert "friendly helper" in before
    before, _ = make_format(tokenizer, chat_templates.CHATML, "").frame
    assert "friendly helper" not in before


def test_a_refused_system_role_says_what_to_do(tokenizer: Any) -> None:
    """In the template's own words."""
    chat = make_format(tokenizer, chat_templates.NO_SYSTEM, SYSTEM)
    with pytest.raises(ModelError, match=r"A system role is not known here.*system_prompt empty"):
        chat.check()


def test_a_dropped_system_message_is_refused(tokenizer: Any) -> None:
    """Without one the template does."""
    with pytest.raises(ModelError, match="dropped"):
        make_format(tokenizer, chat_templates.DROPPING, SYSTEM).check()
    make_format(tokenizer, chat_templates.DROPPING).check()


def test_a_template_that_changes_words_is_refused(tokenizer: Any) -> None:
    """Nobody could tell what the model read."""
    with pytest.raises(ModelError, match=r"changed.*model\.chat: off"):
        make_format(tokenizer, chat_templates.SHOUTING).check()


def test_thinking_is_switched_off_or_refused(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A template that only knows thoughts is told of."""
    switched = make_format(tokenizer, chat_templates.SWITCHED_THINKING)
    switched.check()
    assert switched.frame[1].endswith("<think>\n\n</think>\n\n")
    with pytest.raises(ModelError, match="<think> open"):
        make_format(tokenizer, chat_templates.ALWAYS_THINKING).check()
    assert not caplog.records
    reader = chat_templates.CHATML + "{# earlier <think> and </think> are left out #}"
    with caplog.at_level(logging.WARNING):
        make_format(tokenizer, reader).check()
    assert "knows <think>" in caplog.text


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    message=st.lists(
        st.sampled_from(
            ["<|end|>", "<|turn|>", "<|endoftext|>", " ", "\n", "a", "word", "{{ x }}"]
        ),
        max_size=6,
    ).map("".join),
    name=st.sampled_from(sorted(ACCEPTING)),
)
def test_no_message_ends_its_own_turn(tokenizer: Any, message: str, name: str) -> None:
    """The marks of turns are as many as around any other message."""
    chat = make_format(tokenizer, ACCEPTING[name])
    special = set(chat.tokenizer.all_special_ids)

    def count(text: str) -> int:
        return sum(token in special for token in chat.encode(text).token_ids)

    found = chat.encode(message)
    assert count(message) == count("Hello.")
    own = chat.tokenizer.decode(found.token_ids[found.first : found.stop])
    assert own.strip() == message.strip()


def test_a_long_message_is_cut_and_its_template_kept(tokenizer: Any) -> None:
    """At least one token of the message stays."""
    chat = make_format(tokenizer, chat_templates.CHATML)
    whole = chat.encode("one two three four five six seven eight")
    n_template = len(whole.token_ids) - (whole.stop - whole.first)
    for keep_end in (True, False):
        cut = whole.shorten(n_template + 3, keep_end=keep_end)
        assert len(cut.token_ids) == n_template + 3
        assert cut.token_ids[: cut.first] == whole.token_ids[: whole.first]
        assert cut.token_ids[cut.stop :] == whole.token_ids[whole.stop :]
        own = whole.token_ids[whole.first : whole.stop]
        kept = own[-3:] if keep_end else own[:3]
        assert cut.token_ids[cut.first : cut.stop] == kept
    assert whole.shorten(1, keep_end=True).stop - whole.first == 1
    assert whole.shorten(1_000, keep_end=True) is whole


def test_the_digest_is_of_template_and_system_message(tokenizer: Any) -> None:
    """Each other pair has another."""
    formats = [
        make_format(tokenizer, chat_templates.CHATML),
        make_format(tokenizer, chat_templates.CHATML, ""),
        make_format(tokenizer, chat_templates.CHATML, SYSTEM),
        make_format(tokenizer, chat_templates.STRIPPING),
    ]
    assert len({chat.digest for chat in formats}) == len(formats)
