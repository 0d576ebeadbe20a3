"""How much likelier an edited model is to say what the base said, text by text.

A continuation y of a prompt was drawn by the base with probability q(y), token by token from its
nucleus. An edited model would draw it with p(y); p(y) / q(y) is the weight that turns what the base
said into what the edited model says (importance sampling). An edit of the head leaves the states
along a text as they are: one pass over the texts gives p for any number of edits. An edit of the
trunk needs a pass of its own over the finished texts, which is far less work than drawing them one
token after the other. Reads token ids; what follows from the ratios is `predicted_rates.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eigenshift.base.arrays import FloatArray
from eigenshift.model.batching import count_rows_per_block
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.heads import HeadDescription
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import find_ends
from eigenshift.patches.edits import HeadEdit, LogitEdit, ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.settings import SamplingSettings

CELLS_PER_BLOCK = 1 << 20
"""Positions x vocabulary worked on at once on a CPU: about what a core's cache holds."""
LARGEST_FIRST = 64
"""Nuclei are looked for among so many of the likeliest tokens first, then among more."""


@dataclass(frozen=True)
class DrawnText:
    """What the base drew after a prompt.

    Attributes:
        prompt: Token ids, at least one.
        drawn: Token ids without the end; fewer than `n_tokens` of the settings: it ended.
    """

    prompt: Sequence[int]
    drawn: Sequence[int]


@torch.inference_mode()
def measure_log_ratios(
    language_model: LanguageModel,
    texts: Sequence[DrawnText],
    edits: Sequence[ModelEdit],
    settings: SamplingSettings,
    *,
    tokens_per_batch: int,
) -> FloatArray:
    """Log p(y) - log q(y) of every edit and text.

    Args:
        language_model: The unpatched model.
        texts: What it drew with these settings.
        edits: Changes of the model, any but of the tokenizer.
        settings: Nucleus, temperature, and how many tokens were asked for.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Returns:
        Shape (edit, text), float64; minus infinity where a token is outside the edited model's
        nucleus, so that it would never be drawn.
    """
    of_head = [place for place, edit in enumerate(edits) if not edit.changes_trunk]
    together = [ModelEdit(), *(edits[place] for place in of_head)]

    def iterate() -> Iterator[_Rows]:
        return _iterate_rows(language_model, texts, settings.n_tokens, tokens_per_batch)

    found = _sum_log_probabilities(language_model, iterate(), len(texts), together, settings)
    base = found[0]
    ratios = torch.empty(len(edits), len(texts), dtype=torch.float64)
    ratios[of_head] = found[1:] - base
    for place, edit in enumerate(edits):
        if edit.changes_trunk:
            head = ModelEdit(head=edit.head, logits=edit.logits)
            with run_hooked(language_model, edit.of_trunk):
                (own,) = _sum_log_probabilities(
                    language_model, iterate(), len(texts), [head], settings, is_base=False
                )
            ratios[place] = own - base
    return ratios.numpy()


@dataclass(frozen=True)
class TracedTexts:
    """Texts, and what enters the head where it predicts their tokens.

    Attributes:
        rows: Blocks of positions.
        n_texts: How many texts there are.
    """

    rows: Sequence[_Rows]
    n_texts: int


@torch.inference_mode()
def trace_texts(
    language_model: LanguageModel,
    texts: Sequence[DrawnText],
    settings: SamplingSettings,
    *,
    tokens_per_batch: int,
) -> TracedTexts:
    """Run texts through the trunk as it is, once for several heads.

    Args:
        language_model: The model as it runs.
        texts: What was drawn, by this model or another.
        settings: How many tokens were asked for.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
    """
    rows = _iterate_rows(language_model, texts, settings.n_tokens, tokens_per_batch)
    return TracedTexts(list(rows), len(texts))


@torch.inference_mode()
def sum_log_probabilities(
    language_model: LanguageModel,
    traced: TracedTexts,
    edit: ModelEdit,
    settings: SamplingSettings,
    *,
    has_drawn: bool,
) -> FloatArray:
    """Log p(y) of texts under a model's head as it is, changed by an edit, shape (text,).

    Args:
        language_model: The model as it runs.
        traced: The texts, by a trunk that runs alike.
        edit: Whose changes of the head are applied.
        settings: Nucleus and temperature.
        has_drawn: This model drew the texts: what it drew was in its nucleus.
    """
    of_head = ModelEdit(head=edit.head, logits=edit.logits)
    sums = _sum_log_probabilities(
        language_model, traced.rows, traced.n_texts, [of_head], settings, is_base=has_drawn
    )
    return np.asarray(sums[0].numpy())


def _sum_log_probabilities(
    language_model: LanguageModel,
    rows_of_texts: Iterable[_Rows],
    n_texts: int,
    edits: Sequence[ModelEdit],
    settings: SamplingSettings,
    *,
    is_base: bool = True,
) -> Tensor:
    """Log p(y) under each edit of the head, on the trunk as it runs, shape (edit, text).

    With `is_base` the first is the model that drew the texts: what it drew was in its nucleus.
    """
    nucleus = _Nucleus(language_model, settings)
    moves = [_HeadMove(language_model, edit) for edit in edits]
    head, module = language_model.head, language_model.head_module
    sums = torch.zeros(len(edits), n_texts, dtype=torch.float64)
    for rows in rows_of_texts:
        raw = head.compute_raw_logits(rows.states, module.weight, module.bias).float()
        for place, move in enumerate(moves):
            found = nucleus.find_log_probabilities(
                move.apply(raw, rows.states.float()), rows, must_hold=is_base and place == 0
            )
            sums[place].index_add_(0, rows.texts.cpu(), found.double().cpu())
    return sums


@dataclass(frozen=True)
class _Rows:
    """Predicting positions of some texts, tensors of shape (position, ...)."""

    states: Tensor
    targets: Tensor  # the token drawn; -1: the text ended
    steps: Tensor
    texts: Tensor

    def take(self, part: slice) -> _Rows:
        """Some of the positions."""
        return _Rows(self.states[part], self.targets[part], self.steps[part], self.texts[part])


def _iterate_rows(
    language_model: LanguageModel,
    texts: Sequence[DrawnText],
    n_tokens: int,
    tokens_per_batch: int,
) -> Iterator[_Rows]:
    """All predicting positions, block by block."""
    sequences = [[*text.prompt, *text.drawn] for text in texts]
    device = language_model.device
    n_rows = count_rows_per_block(language_model.head.vocab, CELLS_PER_BLOCK, device)
    waiting: list[_Rows] = []

    def join() -> _Rows:
        parts = [(rows.states, rows.targets, rows.steps, rows.texts) for rows in waiting]
        waiting.clear()
        return _Rows(*(torch.cat(part) for part in zip(*parts, strict=True)))

    for place, states in iterate_head_states(language_model, sequences, tokens_per_batch):
        text = texts[place]
        ended = len(text.drawn) < n_tokens
        targets = torch.tensor([*text.drawn, *[-1] * ended], device=device)
        first = len(text.prompt) - 1
        of_text = _Rows(
            states[first : first + len(targets)],
            targets,
            torch.arange(len(targets), device=device),
            torch.full_like(targets, place),
        )
        for start in range(0, len(targets), n_rows):
            waiting.append(of_text.take(slice(start, start + n_rows)))
            if sum(len(rows.targets) for rows in waiting) >= n_rows:
                yield join()
    if waiting:
        yield join()


class _HeadMove:
    """What an edit of the head does to raw logits, as a product of low rank.

    Args:
        language_model: The unpatched model.
        edit: Of the head.
    """

    def __init__(self, language_model: LanguageModel, edit: ModelEdit) -> None:
        weight = language_model.head_weight.detach()
        self._head: HeadEdit | None = edit.head
        self._logits: LogitEdit | None = edit.logits
        if edit.head is not None:
            edit.head.check_width(weight)
            self._effects = (weight.float() @ edit.head.left.to(weight.device).float()).T
        if edit.logits is not None:
            self._moved = edit.logits.left.to(weight.device).float().T.contiguous()

    def apply(self, raw: Tensor, states: Tensor) -> Tensor:
        """The raw logits after the edit, shape (position, vocab), float32; `raw` stays."""
        if self._head is not None:
            right, target = (part.to(states) for part in (self._head.right, self._head.target))
            raw = torch.addmm(raw, states @ right - target, self._effects, alpha=-1.0)
            states = self._head.apply_to_states(states)
        if self._logits is not None:
            right, shift = (part.to(states) for part in (self._logits.right, self._logits.shift))
            raw = torch.addmm(raw, states @ right + shift, self._moved)
        return raw


class _Nucleus:
    """Probabilities of drawn tokens, as `generation/sampling.py` draws them.

    Args:
        language_model: Whose ends count.
        settings: Nucleus, temperature, and before which step no text ends.
    """

    def __init__(self, language_model: LanguageModel, settings: SamplingSettings) -> None:
        self._head: HeadDescription = language_model.head
        self._settings = settings
        vocab = self._head.vocab
        ends = find_ends(language_model.model, language_model.tokenizer)
        self._ends = torch.tensor(
            [end for end in ends if end < vocab], dtype=torch.long, device=language_model.device
        )

    def find_log_probabilities(self, raw: Tensor, rows: _Rows, *, must_hold: bool) -> Tensor:
        """Of what was drawn at each position, shape (position,).

        Args:
            raw: The head's own output, shape (position, vocab).
            rows: The positions.
            must_hold: What was drawn is in the nucleus, whatever rounding says.
        """
        logits = self._head.finish_logits(raw)
        if self._settings.temperature != 1.0:
            logits = logits / self._settings.temperature
        early = rows.steps < self._settings.min_tokens
        if len(self._ends) and bool(early.any()):
            logits = logits.clone()
            logits[early.nonzero(), self._ends] = -torch.inf
        probabilities = torch.softmax(logits, 1)
        chosen = probabilities.gather(1, rows.targets.clamp_min(0)[:, None])
        of_ends = probabilities[:, self._ends]
        least, mass = self._find_edges(probabilities)
        if not must_hold:
            chosen = chosen.where(chosen >= least, 0.0)
            of_ends = of_ends.where(of_ends >= least, 0.0)
        drawn = torch.where(rows.targets < 0, of_ends.sum(1), chosen.squeeze(1))
        return drawn.log() - torch.maximum(mass, drawn).log()

    def _find_edges(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The least probability in each row's nucleus, shape (position, 1), and its mass."""
        n_rows, vocab = probabilities.shape
        if self._settings.top_p >= 1.0:
            nothing = probabilities.new_zeros(n_rows, 1)
            return nothing, probabilities.new_ones(n_rows)
        least = probabilities.new_empty(n_rows, 1)
        mass = probabilities.new_empty(n_rows)
        waiting, n_largest = torch.arange(n_rows, device=probabilities.device), LARGEST_FIRST
        while len(waiting):
            n_largest = min(n_largest, vocab)
            largest = probabilities[waiting].topk(n_largest, dim=1).values
            likelier = largest.cumsum(1) - largest
            inside = (likelier < self._settings.top_p).sum(1, keepdim=True)
            edge = largest.gather(1, inside - 1)
            # tokens as likely as the last one are inside too, so one less likely has to be seen
            is_found = (largest[:, -1:] < edge).squeeze(1) | (n_largest == vocab)
            rows, held = waiting[is_found], largest[is_found]
            least[rows] = edge[is_found]
            mass[rows] = held.where(held >= edge[is_found], 0.0).sum(1)
            waiting, n_largest = waiting[~is_found], n_largest * 8
        return least, mass
