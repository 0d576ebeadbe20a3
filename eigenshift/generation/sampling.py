"""Draw next tokens so that a draw depends on its own key only and similar arms draw alike.

Every (seed, stream, prompt, sample) has a Philox stream that gives 64 bits per step, and these are
spread over the vocabulary by hashing, so each token of each step has a random number of its own.
The token drawn is the winner of an exponential race, argmax p / E, which is the Gumbel-max draw
argmax log p + g with g = -log E. Arms that share a stream share the numbers token by token, so
arms with nearly the same distribution nearly always draw the same token
(docs/decisions/0044-generation.md). Nothing here runs a model.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Keys = NDArray[np.uint64]

CELLS_PER_BLOCK = 1 << 19
"""Rows x vocabulary worked on at once on a CPU: about what a core's cache holds."""
FIRST_MULTIPLIER, SECOND_MULTIPLIER = 0x21F0AAAD, 0xD35A2D97
"""Of a two-round 32-bit finaliser with low bias (Wellons' hash-prospector)."""
SHIFTS = (16, 15, 15)


def draw_keys(seed: int, stream: str, prompt_id: str, sample_index: int, n_steps: int) -> Keys:
    """64 random bits for each step of one continuation, shape (step,).

    They depend on nothing but the arguments; fewer steps give the beginning of the same keys.
    """
    text = f"{seed}:{stream}:{prompt_id}:{sample_index}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    drawn: Keys = np.random.Philox(key=key).random_raw(n_steps).astype(np.uint64)
    return drawn


def spread_noise(keys: Keys, vocab: int, device: torch.device) -> Tensor:
    """Exponential(1) numbers, one per row and token.

    The 64 bits of a row are an odd multiplier and an offset, applied to a hash of the token and
    hashed again, in 32-bit arithmetic that wraps: the same bits on every device.

    Args:
        keys: Shape (row,).
        vocab: Number of tokens.
        device: Where the result is wanted.

    Returns:
        Shape (row, vocab), float32, above 0; may hold infinity (one number in 3e8).
    """
    offset = _as_signed((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), device)
    multiplier = _as_signed(((keys >> np.uint64(32)) | np.uint64(1)).astype(np.uint32), device)
    mixed = _hash_tokens(vocab, device) * multiplier[:, None]
    mixed += offset[:, None]
    _finalise(mixed)
    uniform = mixed.bitwise_and_(0x7FFFFFFF).float()
    return uniform.add_(0.5).mul_(-(2.0**-31)).log1p_().neg_()


def pick_tokens(logits: Tensor, noise: Tensor, top_p: float, temperature: float) -> Tensor:
    """Draw one token per row from the nucleus.

    A token is in the nucleus if the tokens likelier than it have less than `top_p` together. No
    sort is needed: the winner among all tokens is kept if it is in the nucleus; if not, it and
    everything as unlikely drop out and the next winner is looked at, which gives the winner
    of the nucleus.

    Args:
        logits: Shape (row, vocab), or (arm, row, vocab) for arms that share their noise.
        noise: As from `spread_noise`, shape (row, vocab).
        top_p: Share of the nucleus; 1 draws from everything.
        temperature: Divides the logits.

    Returns:
        Token ids, shape (row,) or (arm, row).
    """
    scaled = logits.float() if temperature == 1.0 else logits.float() / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    race = probabilities / noise
    drawn = race.argmax(-1)
    if top_p >= 1.0:
        return drawn
    winners, probabilities, race = drawn.flatten(), _flatten(probabilities), _flatten(race)
    open_rows = torch.arange(len(race), device=race.device)
    while True:
        kept = winners[open_rows]
        threshold = probabilities.gather(-1, kept[:, None])
        likelier = torch.where(probabilities > threshold, probabilities, 0.0).sum(-1)
        is_outside = likelier >= top_p
        if not bool(is_outside.any()):
            return winners.reshape(drawn.shape)
        open_rows, threshold = open_rows[is_outside], threshold[is_outside]
        probabilities = probabilities[is_outside]
        race = race[is_outside].masked_fill_(probabilities <= threshold, 0.0)
        winners[open_rows] = race.argmax(-1)


def _flatten(table: Tensor) -> Tensor:
    """All rows of all arms, shape (row, vocab)."""
    return table.reshape(-1, table.shape[-1])


@lru_cache(maxsize=4)
def _hash_tokens(vocab: int, device: torch.device) -> Tensor:
    """A well-mixed 32-bit number per token, shape (vocab,)."""
    mixed = torch.arange(1, vocab + 1, dtype=torch.int32, device=device)
    return _finalise(mixed)


def _finalise(mixed: Tensor) -> Tensor:
    """Mix each 32-bit number in place, so that every bit depends on every bit."""
    for shift, multiplier in zip(SHIFTS, (FIRST_MULTIPLIER, SECOND_MULTIPLIER, None), strict=True):
        # the shift of a signed number drags its sign along: mask it away
        mixed ^= (mixed >> shift).bitwise_and_((1 << (32 - shift)) - 1)
        if multiplier is not None:
            mixed *= _wrap(multiplier)
    return mixed


def _wrap(number: int) -> int:
    """The signed 32-bit number with the same bits."""
    return number - (1 << 32) if number >= 1 << 31 else number


def _as_signed(numbers: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(numbers.view(np.int32)).to(device)
