"""Where each token of a continuation lies in its text.

Works on any tokenizer by decoding ever longer prefixes; a character that takes several byte tokens
belongs to the token that completes it. Toxic words are mapped to tokens by these offsets, never by
matching substrings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"


def find_token_spans(tokenizer: Any, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, end) in the decoded text for each token; spans are contiguous.

    Args:
        tokenizer: A Hugging Face tokenizer.
        token_ids: The continuation's tokens.
    """
    spans = []
    start = 0
    for count in range(1, len(token_ids) + 1):
        prefix = tokenizer.decode(
            list(token_ids[:count]), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        end = max(start, len(prefix.rstrip(REPLACEMENT)))
        spans.append((start, end))
        start = end
    return spans


def find_step(spans: Sequence[tuple[int, int]], character: int) -> int:
    """Index of the token with which the word at `character` begins.

    Where the first character takes several byte tokens, this is the first of them.
    """
    step = next((place for place, (_, end) in enumerate(spans) if end > character), len(spans) - 1)
    while step > 0 and spans[step - 1] == (spans[step][0], spans[step][0]):
        step -= 1
    return step
