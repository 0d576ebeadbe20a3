"""Batches that fit into memory: planned by a budget, which is halved when memory runs out.

A budget that had to be halved is remembered for the model, its device and the kind of work as long
as this process lives, so only the first shard pays for finding it. How items are grouped is the
caller's; what a batch computes must not depend on the others in it beyond rounding.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from eigenshift.base.errors import ModelError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Plan = Callable[[Sequence[int], int], list[list[int]]]
"""(size of each item, budget) -> places of the items of each batch."""
Key = tuple[str, str, str]
"""Digest of the model, device, kind of work."""

_fitting: dict[Key, int] = {}

MAX_PADDING_SHARE = 0.1
"""Of a dense batch; beyond it, a new batch costs less than the padding."""
CELLS_ON_A_DEVICE = 1 << 25
"""Rows x columns worked on at once on a GPU, 0.1 GB in float32: of less it waits for the next."""
OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory")
"""What torch's allocators say where they raise a plain RuntimeError (CPU, MPS)."""


def run_in_batches(
    key: Key,
    sizes: Sequence[int],
    budget: int,
    plan: Plan,
    run: Callable[[list[int]], Result],
) -> Iterator[tuple[list[int], Result]]:
    """Run work on items batch by batch; where memory runs out, in smaller batches.

    Args:
        key: What a smaller budget is remembered for.
        sizes: Size of each item, e.g. its tokens.
        budget: Largest number of items * largest size of a batch.
        plan: Groups items; an item above the budget is a batch by itself.
        run: Does one batch, given the places of its items.

    Yields:
        The places of a batch and its result; every item occurs once.

    Raises:
        ModelError: A single item does not fit.
    """
    budget = min(budget, _fitting.get(key, budget))
    waiting = plan(sizes, budget)
    while waiting:
        batch, *waiting = waiting
        found = _attempt(run, batch)
        if found:
            yield batch, found[0]
            continue
        free_memory()
        if len(batch) == 1:
            raise ModelError(
                f"{key[2]} on {key[1]}: expected memory for an item of size {sizes[batch[0]]}, "
                "found too little even for it alone. Use a device with more memory, "
                "model.dtype: bfloat16, or shorter texts."
            )
        smaller = max(1, min(budget, len(batch) * max(sizes[place] for place in batch)) // 2)
        logger.warning(
            "memory ran out: work=%s device=%s budget=%d now=%d", key[2], key[1], budget, smaller
        )
        budget = _fitting[key] = smaller
        left = [*batch, *(place for later in waiting for place in later)]
        waiting = [
            [left[place] for place in planned]
            for planned in plan([sizes[place] for place in left], budget)
        ]


def plan_batches(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group places by size, smallest first, so that each padded batch stays within the budget.

    An item larger than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):
        if batches and (len(batches[-1]) + 1) * sizes[place] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def plan_dense_batches(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group places by size, largest first, so that little of a batch is padding.

    Args:
        sizes: Tokens of each text.
        budget: Largest rows * longest row; a single longer text is a batch by itself.

    Returns:
        Indices into `sizes`; every one occurs once.
    """
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    batches: list[list[int]] = []
    n_real = 0
    for index in order:
        if batches:
            n_padded = (len(batches[-1]) + 1) * sizes[batches[-1][0]]
            padding_share = 1 - (n_real + sizes[index]) / n_padded
            is_large = 2 * n_padded > budget
            if n_padded <= budget and not (is_large and padding_share > MAX_PADDING_SHARE):
                batches[-1].append(index)
                n_real += sizes[index]
                continue
        batches.append([index])
        n_real = sizes[index]
    return batches


def count_rows_per_block(n_columns: int, n_cells: int, device: torch.device) -> int:
    """How many rows of a table to work on at once; changes no result.

    Args:
        n_columns: Of the table.
        n_cells: What a core's cache holds, for work on the CPU; a GPU is given more.
        device: Where the table is.
    """
    n_cells = n_cells if device.type == "cpu" else max(n_cells, CELLS_ON_A_DEVICE)
    return max(1, n_cells // n_columns)


def _attempt(run: Callable[[list[int]], Result], batch: list[int]) -> tuple[Result] | None:
    """The result, or None if memory ran out; the error and what it holds on to are gone then."""
    try:
        return (run(batch),)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left for a tensor."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


def free_memory() -> None:
    """Collect what only cycles hold, and give back what a GPU keeps unused."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
