"""Runs found again: which of them benchmarked a patch."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenshift.ledger.runs import find_benchmarked, write_run
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    """A store with a refresh."""
    return build_small_store(str(tmp_path / "store"))


def find(small: SmallStore, arm: str | None = None) -> str | None:
    """Id of the run that benchmarked the refresh's patch."""
    store, record = small.artifacts.store, small.record
    found = find_benchmarked(store, record, arm or record.judged)
    return None if found is None else found.run_id


def test_without_a_benchmark_there_is_none(small: SmallStore) -> None:
    """Another refresh with the same patch is none."""
    small.add_run()
    assert find(small) is None


def test_the_newest_benchmark_of_the_patch_counts(small: SmallStore) -> None:
    """Not one of another patch, nor one that did not get that far."""
    first = small.add_benchmark()
    assert find(small) == first.run_id
    second = small.add_benchmark()
    assert find(small) == second.run_id > first.run_id
    assert find(small, "random_components") is None
    unfinished = small.add_benchmark()
    unfinished.artifacts = [use for use in unfinished.artifacts if use.kind != "benchmarks"]
    write_run(small.artifacts.store, unfinished)
    assert find(small) == second.run_id


def test_what_was_collected_as_garbage_is_not_looked_for(small: SmallStore) -> None:
    """The record stays, its results are gone."""
    first, second = small.add_benchmark(), small.add_benchmark()
    second.collected_at = second.finished_at
    write_run(small.artifacts.store, second)
    assert find(small) == first.run_id


def test_a_runs_own_questions_come_first(small: SmallStore) -> None:
    """They are what its gate decided on."""
    small.add_benchmark(small.record)
    small.add_benchmark()
    assert find(small) == small.run_id


def test_a_damaged_record_is_passed_over(small: SmallStore) -> None:
    """The report of a run does not fail for another's."""
    benchmark, damaged = small.add_benchmark(), small.add_benchmark()
    small.artifacts.store.write_bytes(f"runs/{damaged.run_id}.json", b"{")
    assert find(small) == benchmark.run_id
