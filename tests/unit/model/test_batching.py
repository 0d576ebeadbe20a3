"""Batches halve when memory runs out, and what fitted is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eigenshift.base.errors import ModelError
from eigenshift.detection.pooling import pool_texts
from eigenshift.generation import continuations
from eigenshift.model import batching
from eigenshift.model.batching import (
    count_rows_per_block,
    is_out_of_memory,
    plan_batches,
    plan_dense_batches,
    run_in_batches,
)
from eigenshift.model.encoding import ReadText
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.interventions.linear_act import fit_maps
from eigenshift.settings import GenerationSettings, Pooling, Site, SitePooling
from eigenshift.store.workspace import Workspace

KEY = ("digest", "cpu", "work")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No budget outlives a test; collecting garbage costs seconds and changes nothing here."""
    monkeypatch.setattr("eigenshift.model.batching.free_memory", lambda: None)
    batching._fitting.clear()
    yield
    batching._fitting.clear()


class SmallMemory:
    """A device that holds so many tokens at once, padding included; counts what it refused."""

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens
        self.n_refused = 0
        self.largest = 0

    def claim(self, n_tokens: int) -> None:
        """Take memory for a batch.

        Raises:
            OutOfMemoryError: As CUDA's allocator does.
        """
        if n_tokens > self._n_tokens:
            self.n_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        self.largest = max(self.largest, n_tokens)

    def watch(self, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
        """Let every forward pass of a model claim its tokens first."""
        forward = type(model).forward

        def claiming(module: Any, *arguments: Any, **named: Any) -> Any:
            self.claim(named["input_ids"].numel())
            return forward(module, *arguments, **named)

        monkeypatch.setattr(type(model), "forward", claiming)


@given(
    sizes=st.lists(st.integers(1, 40), max_size=30),
    budget=st.integers(1, 200),
    memory=st.integers(40, 200),
    is_similar=st.booleans(),
)
def test_every_item_is_done_once_within_memory(
    sizes: list[int], budget: int, memory: int, is_similar: bool
) -> None:
    """Whatever the sizes, the budget and the memory: nothing is lost, repeated or too large."""
    batching._fitting.clear()
    device = SmallMemory(memory)

    def run(batch: list[int]) -> int:
        device.claim(len(batch) * max(sizes[place] for place in batch))
        return len(batch)

    plan = plan_dense_batches if is_similar else plan_batches
    done = [
        place
        for batch, n_done in run_in_batches(KEY, sizes, budget, plan, run)
        for place in batch
        if n_done == len(batch)
    ]
    assert sorted(done) == list(range(len(sizes)))
    assert device.largest <= memory


def test_the_budget_that_fitted_is_remembered_per_key() -> None:
    """The second call fails nowhere; another model starts from the settings."""
    device = SmallMemory(100)
    sizes = [10] * 64

    def run(batch: list[int]) -> None:
        device.claim(10 * len(batch))

    list(run_in_batches(KEY, sizes, 640, plan_batches, run))
    assert device.n_refused == 3  # 640, 320, 160; 80 fits
    list(run_in_batches(KEY, sizes, 640, plan_batches, run))
    assert device.n_refused == 3
    list(run_in_batches(("other", "cpu", "work"), sizes, 640, plan_batches, run))
    assert device.n_refused == 6


def test_an_item_that_does_not_fit_alone_is_explained() -> None:
    """The run ends with a remedy, not with an endless halving."""
    device = SmallMemory(5)
    with pytest.raises(ModelError, match=r"size 6.*model\.dtype"):
        list(run_in_batches(KEY, [6], 12, plan_batches, lambda _: device.claim(6)))


def test_other_errors_pass() -> None:
    """A defect is not mistaken for a lack of memory."""

    def fail(_: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(run_in_batches(KEY, [1, 1], 2, plan_batches, fail))


def test_a_real_refusal_of_the_cpu_allocator_is_recognised() -> None:
    """Torch raises a plain RuntimeError there."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_extraction_does_not_change_when_memory_runs_out(
    tiny_language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pooled values as with enough memory, up to rounding."""
    from eigenshift.model.taps import find_taps

    generator = np.random.default_rng(0)
    token_ids = [generator.integers(1, 300, n).tolist() for n in generator.integers(1, 40, 50)]
    sites = [SitePooling(site=Site.residual, pooling=Pooling.mean)]
    taps = find_taps(tiny_language_model.model, [Site.residual], None)
    texts = [ReadText.all_of(row) for row in token_ids]
    expected = pool_texts(tiny_language_model, taps, texts, sites, 1_000)
    device = SmallMemory(60)
    device.watch(monkeypatch, tiny_language_model.trunk)
    found = pool_texts(tiny_language_model, taps, texts, sites, 1_000)
    assert device.n_refused > 0
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=1e-5)


def test_head_states_do_not_change_when_memory_runs_out(
    tiny_language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward passes for fluency and components halve their batches too."""
    sequences = [[3, 4, 5, 6, 7][: 1 + place % 5] for place in range(40)]
    expected = dict(iterate_head_states(tiny_language_model, sequences, 200))
    device = SmallMemory(20)
    device.watch(monkeypatch, tiny_language_model.model)
    found = dict(iterate_head_states(tiny_language_model, sequences, 200))
    assert device.n_refused > 0
    assert found.keys() == expected.keys()
    for place, states in expected.items():
        torch.testing.assert_close(found[place], states, rtol=1e-4, atol=1e-5)


def test_transport_maps_do_not_change_when_memory_runs_out(
    tiny_language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear-AcT fits the same maps from smaller batches."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 20, 40)
    texts = [ReadText.all_of(generator.integers(1, 300, n).tolist()) for n in lengths]
    expected = fit_maps(tiny_language_model, texts, 20)
    device = SmallMemory(60)
    device.watch(monkeypatch, tiny_language_model.trunk)
    found = fit_maps(tiny_language_model, texts, 20)
    assert device.n_refused > 0
    for name, unit in expected.items():
        torch.testing.assert_close(found[name].shift, unit.shift, rtol=1e-4, atol=1e-5)


def test_continuations_do_not_change_when_memory_runs_out(
    tiny_language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same tokens, since each (prompt, sample) has its own random numbers."""
    settings = GenerationSettings(n_samples=3, n_tokens=5)
    prompts = _make_prompts(8)

    def generate(folder: Path) -> pa.Table:
        folder.mkdir()
        workspace = Workspace(folder)
        made = continuations.generate_continuations(
            tiny_language_model,
            prompts,
            {"base": continuations.LoadedArm(patch=None)},
            settings,
            sequences_per_batch=24,
            workspaces={"base": workspace},
        )
        assert list(made) == [("base",)]
        return pq.read_table(workspace.path("continuations.parquet"))

    expected = generate(tmp_path / "expected")
    device = SmallMemory(30)
    device.watch(monkeypatch, tiny_language_model.model)
    assert generate(tmp_path / "found").equals(expected)
    assert device.n_refused > 0


def _make_prompts(n_prompts: int) -> pa.Table:
    rows = [
        {"prompt_id": f"p{place}", "prompt": f"The letter {place}", "language": "en"}
        for place in range(n_prompts)
    ]
    return pa.Table.from_pylist(rows)


@given(
    st.lists(st.integers(1, 300), max_size=80),
    st.integers(1, 2_000),
)
def test_every_text_is_in_one_batch_within_budget(lengths: list[int], budget: int) -> None:
    """Dense batches partition the texts; only a single text may exceed the budget."""
    batches = plan_dense_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@pytest.mark.parametrize(
    ("n_columns", "device", "expected"),
    [(1_000, "cpu", 4), (10_000, "cpu", 1), (1_024, "cuda", 1 << 15), (1 << 26, "cuda", 1)],
)
def test_a_gpu_is_given_more_rows_at_once(n_columns: int, device: str, expected: int) -> None:
    """A CPU gets what its cache holds, a GPU tens of millions of cells; a row at least."""
    assert count_rows_per_block(n_columns, 4_096, torch.device(device)) == expected
