"""Where tokens lie in their text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from eigenshift.toxicity.token_spans import find_token_spans


def test_spans_of_tokens_cover_the_text(tiny_tokenizer: Any) -> None:
    """Contiguous spans, also where a character takes several byte tokens."""
    text = "a garden 花园里的猫 waits"
    spans = find_token_spans(tiny_tokenizer, tiny_tokenizer(text)["input_ids"])
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(left[1] == right[0] for left, right in pairwise(spans))
