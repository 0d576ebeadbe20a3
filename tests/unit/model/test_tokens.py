"""What `eigenshift.model.tokens` promises."""

from __future__ import annotations

import pytest

from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import Side, find_start, limit_tokens, pad_tokens


def test_the_limit_is_the_models_positions(tiny_language_model: LanguageModel) -> None:
    """The smaller of setting and positions holds."""
    assert limit_tokens(tiny_language_model.model, 512) == 64
    assert limit_tokens(tiny_language_model.model, 8) == 8


@pytest.mark.parametrize(
    ("side", "token_ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 9, 9]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [9, 9, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_padding_stands_on_its_side(
    side: Side, token_ids: list[list[int]], mask: list[list[int]]
) -> None:
    """Real tokens keep their order; the mask is 1 at them alone."""
    found, is_real = pad_tokens([[5, 6, 7], [8]], 9, side)
    assert (found.tolist(), is_real.tolist()) == (token_ids, mask)


@pytest.mark.parametrize(("bos", "eos", "start"), [(0, 2, 0), (None, 2, 2), (None, None, None)])
def test_text_begins_with_bos_or_else_eos(
    bos: int | None, eos: int | None, start: int | None
) -> None:
    """A BOS of id 0 is one."""
    tokenizer = type("Tokenizer", (), {"bos_token_id": bos, "eos_token_id": eos})
    assert find_start(tokenizer) == start
