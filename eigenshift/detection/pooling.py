"""Pooling: one forward pass over many texts, and one value per text, layer and unit of each site.

Values are pooled inside the forward pass; states of single tokens are never kept. Padding is
masked, so what a text gives depends neither on the batch nor on the side that is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eigenshift.base.arrays import AnyArray
from eigenshift.base.errors import ModelError
from eigenshift.model.batching import plan_dense_batches, run_in_batches
from eigenshift.model.encoding import ReadText
from eigenshift.model.loading import TextModel
from eigenshift.model.taps import Tap, hook_taps, read_states
from eigenshift.model.tokens import Side, mark_counted, pad_tokens
from eigenshift.settings import Pooling, Site, SitePooling


@dataclass(frozen=True)
class TokenMask:
    """Which positions of a batch are pooled over.

    Attributes:
        is_counted: Shape (batch, position), bool.
        weights: 1 / n_tokens at counted tokens, else 0; shape (batch, 1, position), float32.
        last: Index of each row's last counted token, shape (batch,).
        has_others: Whether any position is not counted.
    """

    is_counted: Tensor
    weights: Tensor
    last: Tensor
    has_others: bool

    @classmethod
    def of(cls, is_counted: Tensor) -> TokenMask:
        """Derive the rest from `is_counted`; every row has at least one counted token."""
        positions = torch.arange(is_counted.shape[1], device=is_counted.device)
        counts = is_counted.sum(dim=1, keepdim=True)
        weights = (is_counted.float() / counts).unsqueeze(1)
        last = (is_counted * positions).argmax(dim=1)
        return cls(is_counted, weights, last, not bool(is_counted.all()))


def pool_texts(
    text_model: TextModel,
    taps: Sequence[Tap],
    texts: Sequence[ReadText],
    sites: Sequence[SitePooling],
    tokens_per_batch: int,
    precision: str = "float32",
    padding_side: Side = "right",
) -> dict[tuple[int, str], AnyArray]:
    """Run the model's trunk over all texts and pool each site.

    Args:
        text_model: The model.
        taps: Where to read.
        texts: Tokens of each text, and which of them are pooled over.
        sites: Sites and poolings.
        tokens_per_batch: Token budget of a forward pass, padding included; smaller ones are tried
            where memory runs out.
        precision: "float16" or "float32", of the returned arrays; pooling is in float32.
        padding_side: Results do not depend on it; tests prove that.

    Returns:
        (layer, column) -> array of shape (text, unit), in the order of `texts`.
    """
    poolings: dict[Site, list[SitePooling]] = {}
    for site_pooling in dict.fromkeys(sites):
        poolings.setdefault(site_pooling.site, []).append(site_pooling)
    dtype = torch.float16 if precision == "float16" else torch.float32
    values: dict[tuple[int, str], AnyArray] = {}

    def pool(batch: list[int]) -> dict[tuple[int, str], Tensor]:
        rows = [texts[index] for index in batch]
        return _pool_batch(text_model, taps, rows, poolings, padding_side)

    lengths = [len(text.token_ids) for text in texts]
    key_of_budget = (text_model.digest, str(text_model.device), "extraction")
    for batch, pooled in run_in_batches(
        key_of_budget, lengths, tokens_per_batch, plan_dense_batches, pool
    ):
        for key, tensor in pooled.items():
            array = tensor.to(dtype).cpu().numpy()
            if key not in values:
                values[key] = np.empty((len(texts), array.shape[1]), dtype=array.dtype)
            values[key][batch] = array
    return values


def pool_tokens(states: Tensor, mask: TokenMask, pooling: Pooling) -> Tensor:
    """Reduce states over each row's counted tokens.

    Args:
        states: Shape (batch, position, unit), any float dtype.
        mask: Counted positions, on the same device.
        pooling: max, mean or last.

    Returns:
        Shape (batch, unit), float32.
    """
    if pooling is Pooling.mean:
        return torch.bmm(mask.weights, states.float()).squeeze(1)
    if pooling is Pooling.last:
        rows = torch.arange(len(states), device=states.device)
        return states[rows, mask.last].float()
    if mask.has_others:
        states = states.masked_fill(~mask.is_counted.unsqueeze(-1), -torch.inf)
    return states.amax(dim=1).float()


@torch.inference_mode()
def _pool_batch(
    text_model: TextModel,
    taps: Sequence[Tap],
    rows: Sequence[ReadText],
    poolings: Mapping[Site, Sequence[SitePooling]],
    padding_side: Side,
) -> dict[tuple[int, str], Tensor]:
    """One forward pass: (layer, column) -> shape (batch, unit), float32, on the layer's device."""
    device = text_model.entry_device
    sequences = [row.token_ids for row in rows]
    input_ids, attention = pad_tokens(sequences, text_model.tokenizer.pad_token_id, padding_side)
    counted = mark_counted(attention, [row.counted for row in rows], padding_side)
    masks = {device: TokenMask.of(counted.to(device).bool())}
    attention = attention.to(device)
    pooled: dict[tuple[int, str], Tensor] = {}

    def pool(tap: Tap, value: Any) -> None:
        states = read_states(tap, value, counted.shape)
        if states.device not in masks:  # of a divided model each layer has its own device
            masks[states.device] = TokenMask.of(counted.to(states.device).bool())
        for site_pooling in poolings[tap.site]:
            key = (tap.layer, site_pooling.column)
            if key in pooled:
                raise ModelError(
                    f"layer {tap.layer}, {tap.site.value}: expected the module to run once per "
                    "forward pass, found twice. The model shares modules between layers; read "
                    "another site."
                )
            pooled[key] = pool_tokens(states, masks[states.device], site_pooling.pooling)

    with text_model.lock, hook_taps(taps, pool):
        trunk = text_model.trunk
        arguments: dict[str, Any] = {
            "input_ids": input_ids.to(device),
            "attention_mask": attention,
        }
        accepted = inspect.signature(trunk.forward).parameters
        if "use_cache" in accepted:
            arguments["use_cache"] = False
        if padding_side == "left" and "position_ids" in accepted:
            arguments["position_ids"] = (attention.cumsum(dim=1) - 1).clamp_min(0)
        trunk(**arguments)
    expected = sum(len(poolings[tap.site]) for tap in taps)
    if len(pooled) != expected:
        raise ModelError(
            f"{text_model.id}: expected {expected} pooled sites from a forward pass, found "
            f"{len(pooled)}. The model does not call some of its layers as modules; read another "
            "site."
        )
    return pooled
