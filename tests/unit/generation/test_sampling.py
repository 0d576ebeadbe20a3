"""Draws of tokens: the right distribution, keyed random numbers, arms that draw alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from eigenshift.generation.sampling import Keys, draw_keys, pick_tokens, spread_noise

CPU = torch.device("cpu")


def make_keys(n_rows: int, seed: int = 0) -> Keys:
    """One key per row."""
    return np.random.default_rng(seed).integers(0, 2**63, n_rows).astype(np.uint64)


def hash_in_numpy(keys: Keys, vocab: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The definition again, in unsigned arithmetic and float64."""

    def finalise(x: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, Any]:
        x = x ^ (x >> np.uint32(16))
        x = x * np.uint32(0x21F0AAAD)
        x = x ^ (x >> np.uint32(15))
        x = x * np.uint32(0xD35A2D97)
        return np.asarray(x ^ (x >> np.uint32(15)))

    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    tokens = finalise(np.arange(1, vocab + 1, dtype=np.uint32))
    mixed = finalise(tokens[None] * high[:, None] + low[:, None])
    return -np.log1p(-((mixed & np.uint32(0x7FFFFFFF)) + 0.5) / 2**31)


def test_noise_equals_its_definition_in_unsigned_arithmetic() -> None:
    """Signed numbers that wrap give the bits that unsigned ones give.

    Small numbers, which win, are as precise as float32 is; large ones, which lose, less so.
    """
    keys = make_keys(50)
    found, expected = spread_noise(keys, 3000, CPU).numpy(), hash_in_numpy(keys, 3000)
    np.testing.assert_allclose(found[expected < 1], expected[expected < 1], rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_noise_of_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """Nor on how many tokens are asked for."""
    keys = make_keys(20)
    whole = spread_noise(keys, 1000, CPU)
    assert torch.equal(spread_noise(keys[7:8], 1000, CPU)[0], whole[7])
    assert torch.equal(spread_noise(keys[7:8], 400, CPU)[0], whole[7, :400])


def test_noise_is_exponential_along_tokens_and_along_rows() -> None:
    """Kolmogorov-Smirnov over a row, and over a token's numbers in many rows."""
    keys = np.concatenate(
        [draw_keys(0, "main", f"p{place}", 0, 20) for place in range(1000)]
    )  # as they are used: consecutive steps of many prompts
    noise = spread_noise(keys, 500, CPU).numpy()
    p_values = [scipy.stats.kstest(row, "expon").pvalue for row in noise[:200]]
    p_values += [scipy.stats.kstest(noise[:, token], "expon").pvalue for token in range(100)]
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_noise_is_uncorrelated_between_rows_tokens_and_steps() -> None:
    """Correlations are those of independent numbers: their z-scores have variance one."""
    keys = np.concatenate([draw_keys(0, "main", f"p{place}", 0, 2) for place in range(300)])
    noise = spread_noise(keys, 4096, CPU).double()
    for sheet in (noise, noise.T[:400]):
        found = torch.corrcoef(sheet)
        off_diagonal = found[~torch.eye(len(found), dtype=torch.bool)]
        z = off_diagonal * sheet.shape[1] ** 0.5
        assert float(z.var()) == pytest.approx(1.0, abs=0.02)
        assert float(z.abs().max()) < 6.5


def test_keys_depend_on_each_of_what_they_are_made_of() -> None:
    """Seed, stream, prompt and sample; and fewer steps are the beginning of the same keys."""
    one = draw_keys(0, "main", "p", 0, 8)
    for other in (
        draw_keys(1, "main", "p", 0, 8),
        draw_keys(0, "again", "p", 0, 8),
        draw_keys(0, "main", "q", 0, 8),
        draw_keys(0, "main", "p", 1, 8),
    ):
        assert not np.isin(other, one).any()
    assert np.array_equal(draw_keys(0, "main", "p", 0, 3), one[:3])


def draw(probabilities: Tensor, n_rows: int, top_p: float, temperature: float = 1.0) -> Tensor:
    """Many draws from one distribution."""
    noise = spread_noise(make_keys(n_rows), len(probabilities), CPU)
    logits = probabilities.log().expand(n_rows, -1)
    return pick_tokens(logits, noise, top_p, temperature)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.95, [0.5263, 0.3158, 0.1579, 0.0]),  # 0.5 + 0.3 < 0.95, 0.5 + 0.3 + 0.15 is not
        (0.7, [0.625, 0.375, 0.0, 0.0]),
        (0.5, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    top_p: float, expected: list[float]
) -> None:
    """Tokens outside are never drawn; inside, shares follow the renormalised probabilities."""
    drawn = draw(torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 40_000, top_p)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor(expected), atol=8e-3, rtol=0)
    assert all(count > 0 for count, share in zip(shares, expected, strict=True) if share)
    assert not shares[torch.tensor(expected) == 0].any()


def test_draws_equal_sorting_the_nucleus_and_taking_the_largest_gumbel() -> None:
    """Independent reference: sort, cut, add Gumbel noise, argmax; in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(500, 300, generator=generator, dtype=torch.float64)
    noise = spread_noise(make_keys(500), 300, CPU)
    found = pick_tokens(logits, noise, top_p=0.8, temperature=0.9)
    log_p = torch.log_softmax(logits / 0.9, -1)
    ordered, token_ids = log_p.exp().sort(descending=True)
    is_kept = torch.zeros_like(log_p, dtype=torch.bool)
    is_kept.scatter_(1, token_ids, ordered.cumsum(1) - ordered < 0.8)
    gumbel = -noise.double().log()
    expected = (log_p + gumbel).masked_fill(~is_kept, -torch.inf).argmax(1)
    assert torch.equal(found, expected)


def test_a_low_temperature_draws_the_likeliest_token() -> None:
    """Dividing the logits sharpens."""
    drawn = draw(torch.tensor([0.5, 0.3, 0.2]), 1000, 1.0, temperature=0.05)
    assert (drawn == 0).float().mean() > 0.99


def test_shares_follow_a_large_vocabulary() -> None:
    """Chi-square over 200 tokens of very different probabilities."""
    probabilities = torch.softmax(torch.linspace(0, 6, 200, dtype=torch.float64), 0)
    drawn = torch.cat(
        [
            pick_tokens(
                probabilities.log().expand(5000, -1),
                spread_noise(make_keys(5000, seed), 200, CPU),
                1.0,
                1.0,
            )
            for seed in range(10)
        ]
    )
    counts = torch.bincount(drawn, minlength=200).numpy()
    test = scipy.stats.chisquare(counts, probabilities.numpy() * counts.sum())
    assert test.pvalue > 1e-3


def test_similar_distributions_draw_the_same_token_far_more_often_than_by_inversion() -> None:
    """The coupling: Gumbel-max against inverting the distribution sorted by probability.

    Two distributions at total variation t agree with probability (1 - t) / (1 + t) or more here
    (Daliri et al., 2025); inversion agrees much less once ranks differ.
    """
    generator = torch.Generator().manual_seed(0)
    base = 2.0 * torch.randn(2000, 400, generator=generator)
    patched = base + 0.3 * torch.randn(2000, 400, generator=generator)
    noise = spread_noise(make_keys(2000), 400, CPU)
    raced = pick_tokens(base, noise, 1.0, 1.0) == pick_tokens(patched, noise, 1.0, 1.0)
    uniforms = torch.rand(2000, 1, generator=generator)

    def invert(logits: Tensor) -> Tensor:
        ordered, token_ids = logits.softmax(-1).sort(descending=True)
        place = (ordered.cumsum(-1) < uniforms).sum(-1, keepdim=True).clamp(max=399)
        return token_ids.gather(1, place)

    inverted = (invert(base) == invert(patched)).float().mean()
    distance = 0.5 * (base.softmax(-1) - patched.softmax(-1)).abs().sum(-1)
    bound = ((1 - distance) / (1 + distance)).mean()
    assert raced.float().mean() >= bound - 0.02
    assert raced.float().mean() > 0.7
    assert inverted < 0.35
