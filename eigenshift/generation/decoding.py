"""Sample continuations of a batch of prompts for several arms at once.

A row is one continuation: (arm, prompt, sample). Rows with the same prompt and the same tokens so
far are one *branch*, whatever their arm, and the trunk runs once per branch and step: prompts once
for all, later once for all arms that have drawn alike. Each arm's edit of the head is applied to
its own rows' states, h' = h - left (right^T h - target), before the one shared head. So arms may
differ in the head only; an arm that changes the trunk runs by itself. Reads token ids and keys
(`sampling.py`); text and tables are `continuations.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigenshift.generation.branches import Branches, start_branches
from eigenshift.generation.sampling import CELLS_PER_BLOCK, Keys, pick_tokens, spread_noise
from eigenshift.model.batching import count_rows_per_block
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import find_ends
from eigenshift.patches.edits import HeadEdit, LogitEdit, ModelEdit
from eigenshift.settings import SamplingSettings


@dataclass(frozen=True)
class HeadBranch:
    """One variant of the head in a batch.

    Attributes:
        edit: What it changes of the head; changes of the trunk are the model's as it runs.
        keys: One row of keys per (prompt, sample), shape (prompt x sample, step). Arms that share
            random numbers share the array itself.
    """

    edit: ModelEdit
    keys: Keys


@torch.inference_mode()
def sample_batch(
    language_model: LanguageModel,
    prompts: Sequence[list[int]],
    arms: Sequence[HeadBranch],
    settings: SamplingSettings,
) -> list[list[list[int]]]:
    """Sample continuations.

    Args:
        language_model: The model as its trunk is to run.
        prompts: Token ids, at least one each.
        arms: What differs; all in one pass.
        settings: Number of samples and steps, nucleus, temperature.

    Returns:
        Per arm, one list of tokens per row; row p * n_samples + s continues prompt p. They end
        before the first token that ends a text or a turn.
    """
    model, device = language_model.model, language_model.device
    vocab = language_model.head.vocab
    ends = [end for end in find_ends(model, language_model.tokenizer) if end < vocab]
    ending = torch.tensor(ends, dtype=torch.long, device=device)
    branches = start_branches(language_model, prompts)
    branch_of = torch.arange(len(prompts), device=device).repeat_interleave(settings.n_samples)
    branch_of = branch_of.repeat(len(arms))
    finished = torch.zeros(len(branch_of), dtype=torch.bool, device=device)
    edits = [arm.edit for arm in arms]
    chosen: list[Tensor] = []
    for step in range(settings.n_tokens):
        with _edit_heads(language_model, edits, branches, branch_of):
            logits = branches.read()[:, -1]
        if step < settings.min_tokens:
            logits[:, ending] = -torch.inf
        token = _draw_step(logits, arms, step, settings)
        if ends:
            token = token.masked_fill(finished, ends[0])
            finished = torch.isin(token, ending)
        chosen.append(token)
        if step + 1 == settings.n_tokens or bool(finished.all()):
            break
        children, branch_of = torch.unique(branch_of * vocab + token, return_inverse=True)
        branches.go_on(children // vocab, children % vocab)
    table = torch.stack(chosen, 1).reshape(len(arms), -1, len(chosen)).tolist()
    return [[[token for token in row if token not in ends] for row in rows] for rows in table]


def _draw_step(
    logits: Tensor, arms: Sequence[HeadBranch], step: int, settings: SamplingSettings
) -> Tensor:
    """One token per row, block by block; arms that share keys share the noise."""
    vocab, n_rows = logits.shape[-1], len(logits) // len(arms)
    tokens = torch.empty(len(arms), n_rows, dtype=torch.long, device=logits.device)
    logits_of = logits.reshape(len(arms), n_rows, vocab)
    arms_of_stream: dict[int, list[int]] = {}
    for place, arm in enumerate(arms):
        arms_of_stream.setdefault(id(arm.keys), []).append(place)
    for places in arms_of_stream.values():
        keys = arms[places[0]].keys[:, step]
        size = count_rows_per_block(vocab * len(places), CELLS_PER_BLOCK, logits.device)
        for first in range(0, n_rows, size):
            block = slice(first, first + size)
            noise = spread_noise(keys[block], vocab, logits.device)
            tokens[places, block] = pick_tokens(
                logits_of[places, block], noise, settings.top_p, settings.temperature
            )
    return tokens.flatten()


@contextmanager
def _edit_heads(
    language_model: LanguageModel,
    edits: Sequence[ModelEdit],
    branches: Branches,
    branch_of: Tensor,
) -> Iterator[None]:
    """Send each row's state to the head, changed by its arm's edit, in float32 or wider.

    Args:
        language_model: The model.
        edits: One per arm.
        branches: What is run; only the states of their last tokens go to the head.
        branch_of: Which branch each continuation goes on from, shape (row,), arm by arm.
    """
    weight = language_model.head_weight
    heads = [None if edit.head is None else _place(edit.head, weight) for edit in edits]
    filters = [
        None if edit.logits is None else _place_logits(edit.logits, weight) for edit in edits
    ]

    def change(states: Tensor, edit: HeadEdit | None) -> Tensor:
        if edit is None:
            return states
        return edit.apply_to_states(states.to(edit.right.dtype)).to(states.dtype)

    def change_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = branches.select(args[0]).to(branch_of.device)
        changed = [
            change(states[rows], edit)
            for rows, edit in zip(branch_of.chunk(len(edits)), heads, strict=True)
        ]
        return (torch.cat(changed), *args[1:])

    def change_output(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        parts = zip(output.chunk(len(edits)), args[0].chunk(len(edits)), filters, strict=True)
        return torch.cat(
            [
                raw if edit is None else edit.apply_to_logits(raw, states.to(edit.right.dtype))
                for raw, states, edit in parts
            ]
        )

    with language_model.lock, ExitStack() as stack:
        head = language_model.head_module
        stack.callback(head.register_forward_pre_hook(change_input).remove)
        if any(edit is not None for edit in filters):
            stack.callback(head.register_forward_hook(change_output).remove)
        yield


def _place(edit: HeadEdit, weight: Tensor) -> HeadEdit:
    """The edit where the head is, in the precision it is computed in."""
    edit.check_width(weight)
    return HeadEdit(*(_widen(part, weight) for part in (edit.left, edit.right, edit.target)))


def _place_logits(edit: LogitEdit, weight: Tensor) -> LogitEdit:
    return LogitEdit(*(_widen(part, weight) for part in (edit.left, edit.right, edit.shift)))


def _widen(tensor: Tensor, weight: Tensor) -> Tensor:
    width = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return tensor.to(device=weight.device, dtype=width)
