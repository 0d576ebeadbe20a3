"""Sample continuations of a batch of prompts for several arms at once.

Rows of a batch are (arm, prompt, sample). Prompts are left-padded and run once for all arms and
samples; then the trunk runs once per step for all rows, and each arm's edit of the head is applied
to its own rows' states, h' = h - left (right^T h - target), before the one shared head. So arms may
differ in the head only; an arm that changes the trunk runs by itself. Reads token ids and keys
(`sampling.py`); text and tables are `generation.py`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eigenshift.edits import HeadEdit
from eigenshift.models import LanguageModel
from eigenshift.sampling import Keys, count_rows_per_block, pick_tokens, spread_noise
from eigenshift.settings import GenerationSettings


@dataclass(frozen=True)
class DecodingArm:
    """One variant of the head in a batch.

    Attributes:
        edit: What it changes; None changes nothing.
        keys: One row of keys per (prompt, sample), shape (prompt x sample, step). Arms that share
            random numbers share the array itself.
    """

    edit: HeadEdit | None
    keys: Keys


@torch.inference_mode()
def sample_batch(
    language_model: LanguageModel,
    prompts: Sequence[list[int]],
    arms: Sequence[DecodingArm],
    settings: GenerationSettings,
) -> list[list[list[int]]]:
    """Sample continuations.

    Args:
        language_model: The model as its trunk is to run.
        prompts: Token ids, at least one each.
        arms: What differs; all in one pass.
        settings: Number of samples and steps, nucleus, temperature.

    Returns:
        Per arm, one list of tokens per row; row p * n_samples + s continues prompt p. They end
        before the end-of-text token.
    """
    model, device = language_model.model, language_model.device
    end, n_samples = language_model.tokenizer.eos_token_id, settings.n_samples
    input_ids, mask = pad_left(prompts, language_model.tokenizer.pad_token_id, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with _edit_heads(language_model, [arm.edit for arm in arms], is_shared=True):
        outputs = model(**_call(model, input_ids, mask, positions, None))
    prompt_of_row = torch.arange(len(prompts), device=device).repeat_interleave(n_samples)
    of_all_arms = prompt_of_row.repeat(len(arms))
    cache = outputs.past_key_values
    cache.reorder_cache(of_all_arms)
    logits = outputs.logits[:, -1].reshape(len(arms), len(prompts), -1)
    logits = logits[:, prompt_of_row].flatten(0, 1)
    mask, positions = mask[of_all_arms], positions[of_all_arms, -1:]
    finished = torch.zeros(len(of_all_arms), dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    with _edit_heads(language_model, [arm.edit for arm in arms], is_shared=False):
        for step in range(settings.n_tokens):
            if end is not None and step < settings.min_tokens:
                logits[:, end] = -torch.inf
            token = _draw_step(logits, arms, step, settings)
            chosen.append(torch.where(finished, -1, token))
            if end is not None:
                finished |= token == end
            if step + 1 == settings.n_tokens or bool(finished.all()):
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = positions + 1
            outputs = model(**_call(model, token[:, None], mask, positions, cache))
            cache, logits = outputs.past_key_values, outputs.logits[:, -1]
    table = torch.stack(chosen, 1).reshape(len(arms), -1, len(chosen)).tolist()
    return [[[token for token in row if token not in (-1, end)] for row in rows] for rows in table]


def _draw_step(
    logits: Tensor, arms: Sequence[DecodingArm], step: int, settings: GenerationSettings
) -> Tensor:
    """One token per row, block by block; arms that share keys share the noise made of them."""
    vocab, n_rows = logits.shape[-1], len(logits) // len(arms)
    tokens = torch.empty(len(arms), n_rows, dtype=torch.long, device=logits.device)
    logits_of = logits.reshape(len(arms), n_rows, vocab)
    streams = {id(arm.keys): arm.keys[:, step] for arm in arms}
    size = count_rows_per_block(vocab)
    for first in range(0, n_rows, size):
        block = slice(first, first + size)
        for stream, keys in streams.items():
            noise = spread_noise(keys[block], vocab, logits.device)
            for place, arm in enumerate(arms):
                if id(arm.keys) == stream:
                    tokens[place, block] = pick_tokens(
                        logits_of[place, block], noise, settings.top_p, settings.temperature
                    )
    return tokens.flatten()


@contextmanager
def _edit_heads(
    language_model: LanguageModel, edits: Sequence[HeadEdit | None], *, is_shared: bool
) -> Iterator[None]:
    """Change what enters the head, each arm's rows by its own edit, in float32 or wider.

    Args:
        language_model: The model.
        edits: One per arm.
        is_shared: The rows are of all arms alike (prompts), and every arm gets a copy; otherwise
            they are of the arms one after the other. Only the last position goes on.
    """
    placed = [None if edit is None else _place(edit, language_model.head_weight) for edit in edits]

    def change(states: Tensor, edit: HeadEdit | None) -> Tensor:
        if edit is None:
            return states
        return edit.apply_to_states(states.to(edit.right.dtype)).to(states.dtype)

    def change_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0][:, -1:]
        parts = [states] * len(edits) if is_shared else states.chunk(len(edits))
        changed = [change(part, edit) for part, edit in zip(parts, placed, strict=True)]
        return (torch.cat(changed), *args[1:])

    with language_model.lock:
        handle = language_model.head_module.register_forward_pre_hook(change_input)
        try:
            yield
        finally:
            handle.remove()


def _place(edit: HeadEdit, weight: Tensor) -> HeadEdit:
    """The edit where the head is, in the precision it is computed in."""
    edit.check_width(weight)
    width = torch.float64 if weight.dtype == torch.float64 else torch.float32
    tensors = (edit.left, edit.right, edit.target)
    return HeadEdit(*(tensor.to(device=weight.device, dtype=width) for tensor in tensors))


def pad_left(
    sequences: Sequence[list[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (batch, position), padded on the left."""
    width = max(len(sequence) for sequence in sequences)
    token_ids = np.full((len(sequences), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        token_ids[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    return torch.from_numpy(token_ids).to(device), torch.from_numpy(mask).to(device)


def _call(
    model: Any, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
) -> dict[str, Any]:
    """Keyword arguments of a forward pass; models without explicit positions take none."""
    accepted = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "past_key_values": cache,
        "use_cache": True,
    }
    if "position_ids" in accepted:
        arguments["position_ids"] = positions
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = 1
    return arguments
