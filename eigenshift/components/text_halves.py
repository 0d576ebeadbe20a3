"""Which texts calibrate and which evaluate: two halves by id, the same in every run.

What was used to choose or tune anything is left out of the evaluation
(docs/decisions/0008-choice-of-components.md). Pure functions of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pyarrow as pa

from eigenshift.base.errors import DatasetError

CALIBRATION_SHARE = 2


def is_calibration_text(sample_id: str) -> bool:
    """Whether a neutral text is for calibration; the others are for evaluation."""
    digest = hashlib.sha256(f"calibration:{sample_id}".encode()).digest()
    return digest[0] % CALIBRATION_SHARE == 0


def split_neutral(texts: pa.Table, *, for_calibration: bool) -> pa.Table:
    """The calibration or the evaluation part of neutral samples."""
    chosen = [
        is_calibration_text(sample_id) is for_calibration
        for sample_id in texts["sample_id"].to_pylist()
    ]
    return texts.filter(pa.array(chosen, pa.bool_()))


def require_both_parts(shards: Iterable[pa.Table]) -> None:
    """Refuse neutral samples that are all for calibration, or all for evaluation.

    Args:
        shards: Read until there is a sample of each part.

    Raises:
        DatasetError: A part has none.
    """
    counts = {True: 0, False: 0}
    for shard in shards:
        for sample_id in shard["sample_id"].to_pylist():
            counts[is_calibration_text(sample_id)] += 1
        if all(counts.values()):
            return
    raise DatasetError(
        f"neutral texts: expected some for calibration and some for evaluation, found "
        f"{counts[True]} and {counts[False]}. Each text belongs to one part by its id, about half "
        "to each. Add neutral texts; some hundred make perplexity meaningful."
    )
