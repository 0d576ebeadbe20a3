"""Halves of texts: which calibrate and which evaluate."""

from __future__ import annotations

import pyarrow as pa
import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.components.text_halves import is_calibration_text, require_both_parts, split_neutral


@pytest.fixture
def texts(neutral_texts: list[str]) -> pa.Table:
    """Neutral samples."""
    return pa.table({"sample_id": [f"s{i}" for i in range(60)], "text": neutral_texts})


def test_the_parts_are_disjoint_and_fixed(texts: pa.Table) -> None:
    """A text is for calibration or for evaluation, decided by its id alone."""
    parts = [
        set(split_neutral(texts, for_calibration=flag)["sample_id"].to_pylist())
        for flag in (True, False)
    ]
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0]) + len(parts[1]) == 60
    share = sum(is_calibration_text(f"x{i}") for i in range(5000)) / 5000
    assert share == pytest.approx(0.5, abs=0.03)


def test_neutral_texts_all_of_one_part_are_refused(texts: pa.Table) -> None:
    """Before anything is generated: without evaluation texts there is no perplexity in the end."""
    parts = [split_neutral(texts, for_calibration=flag) for flag in (True, False)]
    require_both_parts(parts)
    n_texts = parts[0].num_rows
    with pytest.raises(DatasetError, match=f"found {n_texts} and 0.*Add neutral texts"):
        require_both_parts(parts[:1])
