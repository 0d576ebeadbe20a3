"""Every shard gives its share."""

from __future__ import annotations

import pytest

from eigenshift.evaluation.text_allotment import allot_texts


@pytest.mark.parametrize(
    ("rows", "evaluated", "limit", "expected"),
    [
        ([10, 20], [5, 10], 100, [10, 20]),
        ([10, 20, 30], [5, 10, 15], 6, [1, 2, 3]),
        ([1000], None, 7, [7]),
        ([5, 5], [2, 3], 1, [0, 1]),
        ([2000, 2000], None, 1000, [500, 500]),
        ([80], [36], 40, [40]),
        ([40, 40], [10, 30], 40, [10, 30]),
        ([40, 40], [10, 30], 30, [8, 22]),
        ([1, 1, 1, 1], [0, 1, 0, 1], 2, [0, 1, 0, 1]),
    ],
)
def test_texts_are_allotted_to_all_shards_in_proportion(
    rows: list[int], evaluated: list[int] | None, limit: int, expected: list[int]
) -> None:
    """No source is left out because it comes last; as many are taken as there are to the bound.

    Shards that surely have enough (`evaluated` None) are not read to count.
    """

    def count() -> list[int]:
        assert evaluated is not None
        return evaluated

    allotted = allot_texts(rows, limit, count)
    assert allotted == expected
    if evaluated is not None:
        assert sum(map(min, allotted, evaluated)) == min(limit, sum(evaluated))
