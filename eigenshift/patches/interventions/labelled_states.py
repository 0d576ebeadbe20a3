"""Labelled texts for the peers that learn from them, and the states the model has on them.

Of the calibration half of the samples only: the other half measures harmless text of the domain
(docs/decisions/0051-further-peers.md). Runs the model; writes nothing. What is fitted to the states
is each intervention's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from eigenshift.base.arrays import FloatArray
from eigenshift.base.errors import ComponentError
from eigenshift.components.text_halves import is_calibration_text
from eigenshift.model.batching import plan_batches, run_in_batches
from eigenshift.model.encoding import ReadText, encode_text
from eigenshift.model.layers import list_layers
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import mark_counted, pad_tokens

N_TEXTS = 96
"""Of each class, unless an intervention asks for more."""
MAX_TOKENS = 64
TOKENS_PER_BATCH = 2_048


class _ReachedError(Exception):
    """All that is read was read: the rest of the forward pass is not needed."""


def choose_texts(
    samples: pa.Table, seed: int, n_texts: int = N_TEXTS
) -> tuple[list[str], list[str]]:
    """As many toxic as non-toxic texts, in an order that the seed decides.

    Args:
        samples: `schemas.SAMPLES` rows with labels; those for evaluation are left out.
        seed: Of the draw.
        n_texts: At most so many of each class.

    Raises:
        ComponentError: A class has fewer than two texts.
    """
    is_toxic = samples["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    names = samples["sample_id"].to_pylist()
    is_usable = np.array([is_calibration_text(name) for name in names], dtype=bool)
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(kind & is_usable)) for kind in (is_toxic, ~is_toxic)
    ]
    n_texts = min(n_texts, *(len(places) for places in drawn))
    if n_texts < 2:
        raise ComponentError(
            "labelled texts: expected at least 2 of each class for calibration (half of them), "
            "found fewer. Add labelled texts."
        )
    toxic, nontoxic = (samples.take(places[:n_texts])["text"].to_pylist() for places in drawn)
    return toxic, nontoxic


def encode_texts(language_model: LanguageModel, texts: Sequence[str]) -> list[ReadText]:
    """Tokens of each text as the model's own words, at least one, at most `MAX_TOKENS`."""
    encoded = []
    for text in texts:
        token_ids, n_context = encode_text(language_model, text, MAX_TOKENS)
        first = min(n_context, len(token_ids) - 1) if language_model.chat is not None else 0
        encoded.append(ReadText(token_ids or [0], slice(max(0, first), len(token_ids) or 1)))
    return encoded


def list_norms(language_model: LanguageModel) -> list[str]:
    """Names of the norms that are a block's own parts, in order.

    Raises:
        ComponentError: The blocks have none.
    """
    names = {id(module): name for name, module in language_model.model.named_modules()}
    norms = [
        names[id(child)]
        for block in list_layers(language_model.model)
        for child in block.children()
        if "norm" in type(child).__name__.lower() and getattr(child, "weight", None) is not None
    ]
    if not norms:
        raise ComponentError(
            f"labelled texts: expected norms inside the blocks of {language_model.id}, found none."
        )
    return norms


@torch.inference_mode()
def average_outputs(
    language_model: LanguageModel, names: Sequence[str], texts: Sequence[ReadText]
) -> dict[str, FloatArray]:
    """Mean over each text's tokens of the outputs of some modules, in one pass.

    A pass ends where the last of them has run: half the work where maps are fitted one by one.

    Args:
        language_model: As its weights or hooks make it run now.
        names: Of the modules, each of which gives one tensor.
        texts: Tokens, and which of them count.

    Returns:
        Name -> shape (text, unit).
    """
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def keep(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            seen[name] = output.detach()
            if len(seen) == len(names):
                raise _ReachedError

        return keep

    def run(batch: list[int]) -> dict[str, FloatArray]:
        rows = [texts[place].token_ids for place in batch]
        token_ids, mask = pad_tokens(rows, language_model.tokenizer.pad_token_id, "right")
        counted = mark_counted(mask, [texts[place].counted for place in batch], "right")
        seen.clear()
        with suppress(_ReachedError):
            language_model.trunk(
                input_ids=token_ids.to(language_model.entry_device),
                attention_mask=mask.to(language_model.entry_device),
                use_cache=False,
            )
        found = {}
        for name, output in seen.items():
            outputs = output.float().reshape(*token_ids.shape, -1).cpu()
            sums = (outputs * counted[..., None]).double().sum(1)
            found[name] = np.asarray(sums / counted.sum(1, keepdim=True))
        return found

    key = (language_model.digest, str(language_model.device), "forward pass")
    lengths = [len(text.token_ids) for text in texts]
    means: dict[str, list[FloatArray]] = {name: [np.empty(0)] * len(texts) for name in names}
    with language_model.lock, ExitStack() as stack:
        for name in names:
            module = language_model.model.get_submodule(name)
            stack.callback(module.register_forward_hook(record(name)).remove)
        for batch, found in run_in_batches(key, lengths, TOKENS_PER_BATCH, plan_batches, run):
            for name, rows in found.items():
                for place, row in zip(batch, rows, strict=True):
                    means[name][place] = row
    return {name: np.stack(rows) for name, rows in means.items()}
