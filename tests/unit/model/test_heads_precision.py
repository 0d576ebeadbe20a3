"""The head's product in float32 under a half-precision trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eigenshift.model import heads
from eigenshift.model.loading import LanguageModel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_precise_logits_are_those_of_float64(
    tiny_language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, dtype: Any, has_bias: bool
) -> None:
    """Against the same states and weights in float64; the half-precision product is far off."""
    monkeypatch.setattr(heads, "ROWS_PER_BLOCK", 100)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(320, 256, generator=generator).to(dtype)
    states = torch.randn(7, 256, generator=generator).to(dtype)
    bias = torch.randn(320, generator=generator).to(dtype) if has_bias else None
    expected = states.double() @ weight.double().T
    expected += 0 if bias is None else bias.double()
    head = tiny_language_model.head
    found = head.compute_precise_logits(states, weight, bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    rounded = head.compute_logits(states, weight, bias).double()
    assert (rounded - expected).abs().max() > 20 * (found.double() - expected).abs().max()


def test_wide_trunks_keep_their_product(tiny_language_model: LanguageModel) -> None:
    """float32 gives the very logits of `compute_logits`."""
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    weight = tiny_language_model.head_weight
    head = tiny_language_model.head
    found = head.compute_precise_logits(states, weight)
    assert torch.equal(found, head.compute_logits(states, weight))
