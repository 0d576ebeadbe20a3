"""Continuations of one arm by an engine: a merged copy of the model, written, served and checked.

Reads prompts and a patch; writes the table of each shard, as our own loop would. The model is
loaded once, to encode the prompts, to write the patched weights, and to say how likely it finds
some tokens: an engine that finds them otherwise does not serve what is studied (some drop a head of
its own without a word), and is refused. The engine itself is `engines.py`'s.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ModelError
from eigenshift.generation.engines import Draw, Engine, EngineRequest, open_engine
from eigenshift.generation.records import (
    EncodedPrompt,
    describe_batch,
    encode_prompts,
    write_rows,
)
from eigenshift.generation.sampling import draw_keys
from eigenshift.model.files import identify_model
from eigenshift.model.loading import LanguageModel, forget_models, use_model
from eigenshift.model.tokens import find_ends, limit_tokens, pad_tokens
from eigenshift.patches.patching import Patch, patched_model
from eigenshift.patches.saving import save_patched_model
from eigenshift.settings import ExecutionSettings, ModelSettings, SamplingSettings
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)

N_CHECKED, CHECKED_TOKENS = 8, 64
"""Sequences on which engine and model are compared, and tokens of each."""
MAX_DIFFERENCE = 0.25
"""Nats per token, on average, that an engine may be from the model: kernels round otherwise."""
MIN_MOVE = 0.01
"""Nats per token, on average, that a patch has to move these for it to be told from the base."""


@dataclass(frozen=True)
class ServedShard:
    """Prompts, and where their continuations go.

    Attributes:
        prompts: `schemas.PROMPTS` rows.
        stream: Name of the random stream.
        workspace: Receives the table.
    """

    prompts: pa.Table
    stream: str
    workspace: Workspace


@dataclass(frozen=True)
class _Expected:
    """What the model makes of some tokens, with the patch and without, in nats."""

    sequences: list[list[int]]
    patched: FloatArray
    base: FloatArray


def serve_continuations(
    model: ModelSettings,
    patch: Patch | None,
    shards: Mapping[str, ServedShard],
    settings: SamplingSettings,
    *,
    dtype: str,
    execution: ExecutionSettings,
) -> Iterator[tuple[str, ...]]:
    """Continue the prompts of some shards with one arm.

    Each (prompt, sample) has a seed of its own, the same for every arm of a stream; whether two
    arms then draw alike, and whether a run repeats to the last token, is the engine's.

    Args:
        model: The model under study.
        patch: What changes, with a place in the weights; None is the base.
        shards: Prompts by name.
        settings: How continuations are sampled.
        dtype: Torch's name of the precision that is studied.
        execution: Device and memory.

    Yields:
        Name of a shard whose table is written.

    Raises:
        SettingsError: The engine's package is not installed, or there is no space for the weights.
        ModelError: The engine does not serve the model that is studied.
    """
    with tempfile.TemporaryDirectory(dir=scratch_folder(), prefix="served-") as name:
        with use_model(model, execution) as language_model:
            encoded = {
                shard: encode_prompts(language_model, found.prompts, settings)
                for shard, found in shards.items()
            }
            tokenizer = language_model.tokenizer
            ends = tuple(
                end
                for end in find_ends(language_model.model, tokenizer)
                if end < language_model.vocab
            )
            expected = _weigh_expected(language_model, patch, chain(*encoded.values()))
            folder = identify_model(model).folder
            if patch is not None:
                folder = Path(name)
                save_patched_model(language_model, patch, folder)
        del language_model
        _free_device()
        longest = max(len(prompt.token_ids) for found in encoded.values() for prompt in found)
        n_checked = max(map(len, expected.sequences), default=0)
        n_positions = max(longest + settings.n_tokens, n_checked + 1)
        request = EngineRequest(folder, dtype, n_positions, ends, settings, execution)
        with open_engine(request) as engine:
            check_served(engine, expected, model.id)
            for shard, found in shards.items():
                started = time.perf_counter()
                token_ids = _draw(engine, encoded[shard], settings, found.stream)
                rows = describe_batch(tokenizer, encoded[shard], token_ids, settings.n_samples)
                elapsed = time.perf_counter() - started
                write_rows(rows, len(encoded[shard]), elapsed, found.workspace)
                found.workspace.facts["engine"] = engine.version
                logger.info(
                    "generated: engine=%s prompts=%d continuations=%d tokens_per_second=%.0f",
                    engine.version,
                    len(encoded[shard]),
                    len(rows),
                    sum(map(len, token_ids)) / elapsed,
                )
                yield (shard,)


def _draw(
    engine: Engine, prompts: Sequence[EncodedPrompt], settings: SamplingSettings, stream: str
) -> list[list[int]]:
    return engine.draw(
        [
            Draw(
                prompt.token_ids,
                draw_seed(settings.seed, stream, prompt.prompt_id, sample),
            )
            for prompt in prompts
            for sample in range(settings.n_samples)
        ]
    )


def draw_seed(seed: int, stream: str, prompt_id: str, sample_index: int) -> int:
    """The seed of one continuation, below 2^63; depends on nothing but the arguments."""
    (key,) = draw_keys(seed, stream, prompt_id, sample_index, 1)
    return int(key >> np.uint64(1))


def check_served(engine: Engine, expected: _Expected, model_id: str) -> None:
    """Refuse an engine that serves another model than the one that is studied.

    Raises:
        ModelError: It is too far from the model, or nearer to the base than to the patched model.
    """
    if not expected.sequences:
        return
    served = np.concatenate(engine.weigh(expected.sequences))
    own, base, move = (
        float(np.abs(a - b).mean())
        for a, b in (
            (served, expected.patched),
            (served, expected.base),
            (expected.patched, expected.base),
        )
    )
    found = None
    if not own <= MAX_DIFFERENCE:
        found = f"{own:.3g} nats per token between the two"
    elif move >= MIN_MOVE and base < own:
        found = (
            f"{own:.3g} nats per token from the patched model and {base:.3g} from the base: the "
            "engine has left the patch out"
        )
    if found is not None:
        raise ModelError(
            f"{model_id}, {engine.version}: expected the engine to serve the model that is "
            f"studied, found {found}. It has a class of its own for this architecture that reads "
            "the weights otherwise (docs/exports.md, other tools). Set generation.backend: "
            "transformers."
        )


def _weigh_expected(
    language_model: LanguageModel, patch: Patch | None, prompts: Iterator[EncodedPrompt]
) -> _Expected:
    """The first tokens of the prompts, put together, and how likely the model finds them."""
    tokens: list[int] = []
    for prompt in prompts:
        tokens += prompt.token_ids
        if len(tokens) >= N_CHECKED * CHECKED_TOKENS:
            break
    # an engine draws a token behind them, for which there has to be a position
    n_each = limit_tokens(language_model.model, CHECKED_TOKENS + 1) - 1
    starts = range(0, min(len(tokens), N_CHECKED * n_each), n_each)
    cut = (tokens[start : start + n_each] for start in starts)
    sequences = [part for part in cut if len(part) > 1]
    if not sequences:
        return _Expected([], np.empty(0), np.empty(0))
    base = weigh_tokens(language_model, sequences)
    if patch is None:
        return _Expected(sequences, base, base)
    with patched_model(language_model, patch):
        return _Expected(sequences, weigh_tokens(language_model, sequences), base)


@torch.inference_mode()
def weigh_tokens(language_model: LanguageModel, sequences: Sequence[Sequence[int]]) -> FloatArray:
    """Log probability of each token after the first of its sequence, all in one row, float64."""
    token_ids, mask = pad_tokens(sequences, language_model.tokenizer.pad_token_id, "right")
    device = language_model.device
    logits = language_model.model(
        input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).logits
    found = torch.log_softmax(logits[:, :-1].double(), -1).cpu()
    found = found.gather(2, token_ids[:, 1:, None]).squeeze(2)
    values: FloatArray = found[mask[:, 1:].bool()].numpy()
    return values


def _free_device() -> None:
    """Let go of models in memory, so that the engine finds room."""
    forget_models()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
