"""A causal language model as a scorer: asked a question about the text, it answers yes or no.

Reads a folder, a URL or a hub id, safetensors only. Nothing is generated: the probability of being
toxic is that of the answers meaning yes against those meaning no, by the logits of the token that
would come next. Of each answer only the first token counts, as it stands behind the question; two
answers that begin alike cannot be told apart and are refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from eigenshift.base.errors import DatasetError, ModelError, ScorerError
from eigenshift.model.chat import ChatFormat
from eigenshift.model.encoding import find_beginning
from eigenshift.model.tokens import pad_tokens, read_positions
from eigenshift.settings import PLACEHOLDER, ChatUse, JudgeSettings, PlainScorerSettings
from eigenshift.settings.judges import DEFAULT_PROMPT
from eigenshift.store.source_files import fetch_path
from eigenshift.toxicity.scorers.interface import Score, score_by_length, score_patiently
from eigenshift.toxicity.scorers.pretrained import identify_classifier, load_pretrained

logger = logging.getLogger(__name__)

PROBE = "A garden of 4711 kettles."
"""A text with which a question is tried out."""
SPARE_TOKENS = 8
"""Left free of the positions: tokens around a text may join otherwise than around the probe."""


@dataclass(frozen=True)
class Question:
    """What a judge is asked, rendered: all that stands around the text.

    Attributes:
        tokenizer: The judge's.
        start: Tokens that come first, such as BOS where no template writes it.
        before: Of the text; with a chat template what that writes before it.
        after: Of the text, up to where the answer can be told: the template's end and what every
            answer begins with.
        max_text_tokens: Of longer texts only the beginning is shown.
    """

    tokenizer: Any
    start: tuple[int, ...]
    before: str
    after: str
    max_text_tokens: int

    def encode(self, text: str) -> list[int]:
        """Token ids of the question about a text.

        The names of control tokens in the text are text: it cannot end the question.
        """
        shown = self._shorten(text)
        special = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        if any(name in shown for name in special):
            parts = [(self.before, False), (shown, True), (self.after, False)]
        else:  # in one go, so that tokens may reach over the seams
            parts = [(self.before + shown + self.after, False)]
        return [
            *self.start,
            *(token for part, is_text in parts for token in self._tokenize(part, is_text)),
        ]

    def encode_answered(self, answer: str) -> list[int]:
        """Token ids of the question about the probe with what is said to it."""
        return [*self.start, *self._tokenize(self.before + PROBE + self.after + answer, False)]

    def _tokenize(self, text: str, is_text: bool) -> list[int]:
        found: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=is_text, verbose=False
        )["input_ids"]
        return found

    def _shorten(self, text: str) -> str:
        token_ids = self._tokenize(text, True)
        if len(token_ids) <= self.max_text_tokens:
            return text
        kept: str = self.tokenizer.decode(
            token_ids[: self.max_text_tokens], clean_up_tokenization_spaces=False
        )
        return kept


@dataclass(frozen=True)
class OpenJudge:
    """A judge ready to be asked.

    Attributes:
        model: In eval mode.
        question: What it is asked.
        yes: First tokens of the answers that mean toxic.
        no: Of those that mean not toxic.
        min_answer_share: Least probability of all of them together.
    """

    model: Any
    question: Question
    yes: tuple[int, ...]
    no: tuple[int, ...]
    min_answer_share: float


class JudgeScorer:
    """Scores texts by asking a language model.

    Args:
        name: Of the scorer in the tables.
        digest: What decides the scores.
        judge: Model, question and answers.
        device: Where the model runs.
        texts_per_batch: Texts per forward pass; does not change the scores beyond rounding.
    """

    def __init__(
        self, name: str, digest: str, judge: OpenJudge, device: str, texts_per_batch: int
    ) -> None:
        self.name = name
        self.digest = digest
        judge.model.to(device)
        self._judge = judge
        self._texts_per_batch = texts_per_batch
        self._lock = Lock()

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Score texts, in order; blank ones, and those it does not answer to, are unscored."""
        return score_by_length(texts, self._texts_per_batch, self._score_batch)

    def _score_batch(self, texts: list[str]) -> list[Score]:
        shares: dict[str, float] = {}

        def compute(batch: list[str]) -> list[float]:
            with self._lock:
                probabilities, answered = self._ask(batch)
            shares.update(zip(batch, answered, strict=True))
            return probabilities

        least = self._judge.min_answer_share
        return [
            Score(None, "judge gives its answers too little probability")
            if shares.get(text, 1.0) < least
            else score
            for text, score in zip(texts, score_patiently(texts, compute), strict=True)
        ]

    @torch.inference_mode()
    def _ask(self, texts: list[str]) -> tuple[list[float], list[float]]:
        """Probability of yes against no, and of both together, of each text."""
        found = self._judge
        logits = _read_next_logits(
            found.model, [found.question.encode(text) for text in texts], found.question.tokenizer
        )
        yes, no = (logits[:, list(tokens)].logsumexp(1) for tokens in (found.yes, found.no))
        answered = torch.exp(torch.logaddexp(yes, no) - logits.logsumexp(1))
        return torch.sigmoid(yes - no).tolist(), answered.tolist()


def describe_judge(settings: PlainScorerSettings) -> Iterator[str]:
    """What decides a judge's scores: its model, the question's digest, the answers.

    Its chat template is one of the model's files.

    Raises:
        ScorerError: The model or the file with the question is missing.
    """
    asked = settings.judge or JudgeSettings()
    yield identify_classifier(settings).digest
    yield hashlib.sha256(_read_prompt(settings).encode()).hexdigest()
    document = asked.model_dump(mode="json", exclude={"prompt", "prompt_file"})
    yield json.dumps(document, sort_keys=True)


def load_judge(settings: PlainScorerSettings) -> OpenJudge:
    """Load a judge and try its question out.

    Raises:
        ScorerError: It cannot be loaded, has no chat template where one is asked for, has no room
            for a text, or its answers cannot be told apart by their first tokens.
    """
    asked = settings.judge or JudgeSettings()
    model, tokenizer = load_pretrained(
        settings, "AutoModelForCausalLM", "a causal language model", asked.dtype
    )
    question = _render_question(settings, asked, tokenizer)
    question = _fit_positions(settings.name, question, model)
    yes, no = (
        find_first_tokens(settings.name, question, spellings)
        for spellings in (asked.toxic_answers, asked.other_answers)
    )
    _require_apart(settings.name, yes, no)
    return OpenJudge(
        model.eval(),
        question,
        tuple(dict.fromkeys(yes.values())),
        tuple(dict.fromkeys(no.values())),
        asked.min_answer_share,
    )


def find_first_tokens(name: str, question: Question, spellings: Sequence[str]) -> dict[str, int]:
    """Spelling -> its first token where it stands behind the question.

    A spelling that joins the question's last token, such as one with a space where the question
    ends in one, cannot be said there and is left out.

    Args:
        name: Of the scorer, for errors.
        question: What they answer.
        spellings: Of one answer.

    Raises:
        ScorerError: None is left.
    """
    start = question.encode_answered("")
    unknown = question.tokenizer.unk_token_id
    found: dict[str, int] = {}
    for spelling in spellings:
        whole = question.encode_answered(spelling)
        if whole[: len(start)] == start and len(whole) > len(start):
            found[spelling] = whole[len(start)]
    kept = {spelling: token for spelling, token in found.items() if token != unknown}
    if len(kept) < len(spellings):
        logger.info(
            "judge %s: %d of %d spellings cannot follow the question",
            name,
            len(spellings) - len(kept),
            len(spellings),
        )
    if not kept:
        raise ScorerError(
            f"scorer {name}: expected an answer that begins with a token of its own behind the "
            f"question, found none among {_show(spellings)}. End the question (or answer_prefix) "
            "without a space, or spell scorer.judge.toxic_answers and .other_answers otherwise."
        )
    return kept


def _require_apart(name: str, yes: Mapping[str, int], no: Mapping[str, int]) -> None:
    """Refuse answers of different meaning that begin with the same token.

    Raises:
        ScorerError: There are two.
    """
    for spelling, token in yes.items():
        for other, same in no.items():
            if token == same:
                raise ScorerError(
                    f"scorer {name}: expected answers that differ in their first token, found "
                    f"{spelling!r} and {other!r}, which both begin with token {token}. Only the "
                    "first token is looked at: give what they share as scorer.judge.answer_prefix, "
                    "or leave one of them out of scorer.judge.toxic_answers or .other_answers."
                )


def _read_prompt(settings: PlainScorerSettings) -> str:
    """The question with its placeholder.

    Raises:
        ScorerError: Its file is missing, is no text, or has not exactly one place for the text.
    """
    asked = settings.judge or JudgeSettings()
    if asked.prompt_file is None:
        return DEFAULT_PROMPT if asked.prompt is None else asked.prompt
    try:
        prompt = fetch_path(asked.prompt_file).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError, DatasetError) as error:
        raise ScorerError(
            f"{asked.prompt_file}: expected a file in UTF-8 with a question, found "
            f"{type(error).__name__}. Check scorer.judge.prompt_file."
        ) from error
    if (count := prompt.count(PLACEHOLDER)) != 1:
        raise ScorerError(
            f"{asked.prompt_file}: expected {PLACEHOLDER} once, where the text goes, found it "
            f"{count} times. Correct the question."
        )
    return prompt


def _render_question(
    settings: PlainScorerSettings, asked: JudgeSettings, tokenizer: Any
) -> Question:
    """The question as the judge reads it, through its chat template where it is asked so.

    Raises:
        ScorerError: There is no template where one is asked for, it does not take the question or
            leaves a thought open, or nothing stands behind the text.
    """
    before, _, after = _read_prompt(settings).partition(PLACEHOLDER)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if asked.chat is ChatUse.on and not has_template:
        raise ScorerError(
            f"scorer {settings.name}: expected a chat template with the tokenizer of "
            f"{settings.model}, found none. Set scorer.judge.chat: off, or choose another judge."
        )
    start: list[int] = []
    if has_template and asked.chat is not ChatUse.off:
        before, after = _frame_by_template(settings.name, tokenizer, before, after)
    else:
        start = find_beginning(tokenizer)
        own = tokenizer(before, add_special_tokens=False)["input_ids"]
        start = [] if own[: len(start)] == start else start
    after += asked.answer_prefix
    if not after:
        raise ScorerError(
            f"scorer {settings.name}: expected something behind {PLACEHOLDER} in the question, "
            "found nothing: the judge would go on with the text instead of answering. Add a word "
            "such as 'Answer:'."
        )
    return Question(tokenizer, tuple(start), before, after, asked.max_text_tokens)


def _frame_by_template(name: str, tokenizer: Any, before: str, after: str) -> tuple[str, str]:
    """What the chat template writes before and after the text in the question."""
    chat = ChatFormat(tokenizer, f"scorer {name}")
    try:
        chat.check()
        found = chat.render(before + PROBE + after).partition(PROBE)
    except ModelError as error:
        raise ScorerError(str(error).replace("model.chat", "scorer.judge.chat")) from error
    if not found[1]:
        raise ScorerError(
            f"scorer {name}: expected the question in what the chat template writes, found it "
            "changed. Set scorer.judge.chat: off and write the template's marks into the question."
        )
    return found[0], found[2]


def _fit_positions(name: str, question: Question, model: Any) -> Question:
    """Shorten texts to what the model's positions leave beside the question.

    Raises:
        ScorerError: There is no room for a text.
    """
    positions = read_positions(model)
    if positions is None:
        return question
    n_around = len(question.encode(PROBE)) + SPARE_TOKENS
    n_left = positions - n_around
    if n_left < 1:
        raise ScorerError(
            f"scorer {name}: expected room for a text beside the question, found {positions} "
            f"positions and a question of {n_around} tokens. Shorten the question."
        )
    return replace(question, max_text_tokens=min(n_left, question.max_text_tokens))


def _read_next_logits(model: Any, sequences: Sequence[list[int]], tokenizer: Any) -> Tensor:
    """Logits of the token behind each sequence, float32, shape (batch, vocab)."""
    pad = next(
        (item for item in (tokenizer.pad_token_id, tokenizer.eos_token_id) if item is not None), 0
    )
    token_ids, mask = (tensor.to(model.device) for tensor in pad_tokens(sequences, pad, "left"))
    accepted = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    found = model(input_ids=token_ids, attention_mask=mask, use_cache=False, **options)
    logits: Tensor = found.logits[:, -1].float()
    return logits


def _show(spellings: Sequence[str]) -> str:
    return ", ".join(map(repr, spellings))
