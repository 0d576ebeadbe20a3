"""Seeded continuations of prompts, before and after a patch.

Reads prompts (`schemas.PROMPTS`); writes `continuations.parquet` (`schemas.CONTINUATIONS`).
Every (prompt, sample) has its own stream of uniform numbers and tokens are drawn by inverting the
cumulative distribution, so a continuation depends neither on the batch it was in nor on its
place, and two arms that differ only in the head share their randomness (common random numbers).
Judging the text is `scoring.py`'s.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.models import LanguageModel
from eigenshift.settings import GenerationSettings

logger = logging.getLogger(__name__)

STEP_VERSION = 1


@dataclass(frozen=True)
class _Prompt:
    prompt_id: str
    language: str
    text: str
    token_ids: list[int]


def generate_continuations(
    language_model: LanguageModel,
    prompts: pa.Table,
    settings: GenerationSettings,
    *,
    stream: str,
    sequences_per_batch: int,
    workspace: Workspace,
) -> None:
    """Continue every prompt `settings.n_samples` times.

    Args:
        language_model: The model, with its patch already applied if there is one.
        prompts: `schemas.PROMPTS` rows.
        settings: Sampling settings.
        stream: Name of the random stream; arms that are to share randomness share it.
        sequences_per_batch: Sequences generated at once; does not change the result.
        workspace: Receives the table.
    """
    started = time.perf_counter()
    encoded = encode_prompts(language_model, prompts, settings)
    encoded.sort(key=lambda prompt: (len(prompt.token_ids), prompt.prompt_id))
    per_batch = max(1, sequences_per_batch // settings.n_samples)
    rows: list[dict[str, Any]] = []
    for first in range(0, len(encoded), per_batch):
        batch = encoded[first : first + per_batch]
        uniforms = np.stack(
            [
                draw_uniforms(settings, stream, prompt.prompt_id, sample)
                for prompt in batch
                for sample in range(settings.n_samples)
            ]
        )
        with language_model.lock:
            token_ids = _sample_batch(
                language_model, [prompt.token_ids for prompt in batch], uniforms, settings
            )
        rows.extend(_describe_batch(language_model, batch, token_ids, settings.n_samples))
    rows.sort(key=lambda row: (row["prompt_id"], row["sample_index"]))
    workspace.write_rows("continuations.parquet", rows, schemas.CONTINUATIONS)
    elapsed = time.perf_counter() - started
    n_tokens = sum(len(row["token_ids"]) for row in rows)
    workspace.facts = {
        "n_prompts": len(encoded),
        "n_continuations": len(rows),
        "n_tokens": n_tokens,
        "tokens_per_second": round(n_tokens / elapsed, 1),
    }


def encode_prompts(
    language_model: LanguageModel, prompts: pa.Table, settings: GenerationSettings
) -> list[_Prompt]:
    """Tokenise prompts, keeping the last `max_prompt_tokens` and room for the continuation.

    A prompt that gives no token begins with the model's BOS (or EOS) token.
    """
    limit = settings.max_prompt_tokens
    config = language_model.model.config.get_text_config()
    n_positions = getattr(config, "max_position_embeddings", None)
    if n_positions is not None:
        limit = min(limit, max(1, n_positions - settings.n_tokens))
    tokenizer = language_model.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = []
    for row in prompts.select(["prompt_id", "language", "prompt"]).to_pylist():
        token_ids = tokenizer(row["prompt"])["input_ids"][-limit:] or [start]
        encoded.append(_Prompt(row["prompt_id"], row["language"], row["prompt"], token_ids))
    return encoded


def draw_uniforms(
    settings: GenerationSettings, stream: str, prompt_id: str, sample_index: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The uniform numbers of one continuation, shape (n_tokens,), from a counter-based generator.

    They depend on nothing but seed, stream, prompt and sample index.
    """
    text = f"{settings.seed}:{stream}:{prompt_id}:{sample_index}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(settings.n_tokens)


@torch.inference_mode()
def _sample_batch(
    language_model: LanguageModel,
    prompts: Sequence[list[int]],
    uniforms: np.ndarray[Any, np.dtype[np.float64]],
    settings: GenerationSettings,
) -> list[list[int]]:
    """Sample continuations; row p * n_samples + s continues prompt p. Ends are at EOS."""
    model, device = language_model.model, language_model.device
    end, n_samples = language_model.tokenizer.eos_token_id, settings.n_samples
    input_ids, mask = pad_left(prompts, language_model.tokenizer.pad_token_id, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    outputs = model(**_call(model, input_ids, mask, positions, None))
    cache = outputs.past_key_values
    cache.batch_repeat_interleave(n_samples)
    logits = outputs.logits[:, -1].repeat_interleave(n_samples, 0)
    mask = mask.repeat_interleave(n_samples, 0)
    positions = positions[:, -1:].repeat_interleave(n_samples, 0)
    draws = torch.from_numpy(uniforms).to(device)
    finished = torch.zeros(len(draws), dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    for step in range(settings.n_tokens):
        if end is not None and step < settings.min_tokens:
            logits = logits.index_fill(-1, torch.tensor([end], device=device), -torch.inf)
        token = pick_tokens(logits, draws[:, step], settings.top_p, settings.temperature)
        chosen.append(torch.where(finished, -1, token))
        if end is not None:
            finished |= token == end
        if step + 1 == settings.n_tokens or bool(finished.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions + 1
        outputs = model(**_call(model, token[:, None], mask, positions, cache))
        cache, logits = outputs.past_key_values, outputs.logits[:, -1]
    table = torch.stack(chosen, 1).tolist()
    return [[token for token in row if token not in (-1, end)] for row in table]


def pick_tokens(logits: Tensor, uniforms: Tensor, top_p: float, temperature: float) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution of the nucleus.

    Args:
        logits: Shape (batch, vocab).
        uniforms: Shape (batch,), float64 in [0, 1).
        top_p: The smallest set of likeliest tokens whose probability reaches this is kept.
        temperature: Divides the logits.

    Returns:
        Token ids, shape (batch,).
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    ordered, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.double().cumsum(-1)
    is_kept = cumulative - ordered < top_p
    total = (ordered.double() * is_kept).sum(-1)
    place = (cumulative <= (uniforms * total)[:, None]).sum(-1)
    last_kept = is_kept.sum(-1) - 1
    return token_ids.gather(-1, torch.minimum(place, last_kept)[:, None]).squeeze(-1)


def pad_left(
    sequences: Sequence[list[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both (batch, position), padded on the left."""
    width = max(len(sequence) for sequence in sequences)
    token_ids = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for row, sequence in enumerate(sequences):
        token_ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return token_ids.to(device), mask.to(device)


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


def _describe_batch(
    language_model: LanguageModel,
    batch: Sequence[_Prompt],
    token_ids: Sequence[list[int]],
    n_samples: int,
) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": prompt.prompt_id,
            "sample_index": sample,
            "language": prompt.language,
            "prompt": prompt.text,
            "continuation": language_model.tokenizer.decode(
                token_ids[place * n_samples + sample],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            ),
            "prompt_token_ids": prompt.token_ids,
            "token_ids": token_ids[place * n_samples + sample],
        }
        for place, prompt in enumerate(batch)
        for sample in range(n_samples)
    ]
