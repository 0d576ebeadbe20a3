"""Decomposition of the head, against numpy in float64."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eigenshift.base.errors import ComponentError, ModelError
from eigenshift.components.decomposition import (
    Decomposition,
    TensorRows,
    decompose_head,
    decompose_leading,
    decompose_rows,
    write_decomposition,
)
from eigenshift.components.stages import DECOMPOSITION_NAME
from eigenshift.model.head_files import StoredHead, convert, find_stored_head, list_stored_heads
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import load_model
from eigenshift.settings import ModelSettings
from eigenshift.store.workspace import Workspace

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def make_head(vocab: int, hidden: int, condition: float, seed: int = 0) -> torch.Tensor:
    """A float64 head with a log spectrum and the given condition number."""
    generator = np.random.default_rng(seed)
    rank = min(vocab, hidden)
    left = np.linalg.qr(generator.normal(size=(vocab, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(hidden, rank)))[0]
    return torch.from_numpy(left * np.geomspace(condition, 1, rank) @ right.T)


@pytest.mark.parametrize("shape", [(500, 64), (64, 64), (40, 64)], ids=["tall", "square", "wide"])
def test_singular_values_and_projectors_equal_numpy(shape: tuple[int, int]) -> None:
    """Singular values to 1e-9 relative; vectors compared by what they span, not by sign."""
    weight = make_head(*shape, condition=100.0)
    found = decompose_head(weight)
    _, sigma, vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-9)
    for k in (1, 5, len(sigma)):
        projector = vt[:k].T @ vt[:k]
        np.testing.assert_allclose(found.v[:, :k] @ found.v[:, :k].T, projector, atol=1e-8)


@pytest.mark.parametrize("shape", [(500, 64), (64, 64), (40, 64)], ids=["tall", "square", "wide"])
@pytest.mark.parametrize("condition", [100.0, 1e6])
def test_by_torch_it_is_the_same_decomposition(shape: tuple[int, int], condition: float) -> None:
    """As on a GPU, here on the processor: values, and V up to the vectors' signs."""
    rows = TensorRows(make_head(*shape, condition))
    found, expected = decompose_rows(rows, "cpu"), decompose_rows(rows)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-9)
    signs = np.sign(np.einsum("ij,ij->j", found.v, expected.v))
    np.testing.assert_allclose(found.v * signs, expected.v, atol=1e-7)
    assert (found.energy, found.rounding) == pytest.approx((expected.energy, expected.rounding))


@pytest.mark.parametrize("condition", [1e4, 1e6, 1e7])
def test_small_singular_values_are_as_precise_as_large_ones(condition: float) -> None:
    """Squaring would lose their digits; the levels keep 1e-9 where numpy's SVD does."""
    weight = make_head(400, 48, condition)
    found = decompose_head(weight)
    np.testing.assert_allclose(found.sigma, np.linalg.svd(weight.numpy())[1], rtol=1e-9)
    np.testing.assert_allclose(found.v.T @ found.v, np.eye(48), atol=1e-12)
    rebuilt = weight.numpy() @ found.v
    np.testing.assert_allclose(np.linalg.norm(rebuilt, axis=0), found.sigma, rtol=1e-8)


@pytest.mark.parametrize("shape", [(300, 32), (24, 32)], ids=["tall", "wide"])
def test_a_condition_number_beyond_rounding_loses_only_the_smallest(
    shape: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Errors stay at rounding errors of the largest value, as in a full SVD; the log says so."""
    weight = make_head(*shape, condition=1e14)
    with caplog.at_level(logging.INFO):
        found = decompose_head(weight)
    expected = np.geomspace(1e14, 1, min(shape))
    np.testing.assert_allclose(found.sigma, expected, rtol=1e-9, atol=1e14 * 5e-14)
    assert "levels" in caplog.text


def test_a_head_of_lower_rank_is_decomposed() -> None:
    """Zero singular values end the levels."""
    weight = make_head(100, 8, 10.0) @ make_head(8, 20, 10.0)
    found = decompose_head(weight)
    np.testing.assert_allclose(found.sigma, np.linalg.svd(weight.numpy())[1], atol=1e-11)
    np.testing.assert_allclose(found.v.T @ found.v, np.eye(20), atol=1e-12)


def test_a_head_with_a_nan_is_refused() -> None:
    """A damaged checkpoint does not become components."""
    weight = make_head(50, 8, 10.0)
    weight[3, 2] = torch.nan
    with pytest.raises(ComponentError, match="finite weights"):
        decompose_head(weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision_heads_are_decomposed_in_float64(dtype: torch.dtype) -> None:
    """The result is that of the stored values, whatever their precision."""
    weight = make_head(200, 16, condition=10.0).to(dtype)
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(decompose_head(weight).sigma, expected, rtol=1e-9)


def test_energy_and_gaps_describe_the_spectrum() -> None:
    """Shares sum to one; equal singular values have no gap."""
    weight = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    found = decompose_head(weight)
    assert found.energy_shares.sum() == pytest.approx(1.0)
    assert found.energy_shares[0] == pytest.approx(9 / 18)
    np.testing.assert_allclose(found.relative_gaps, [1 / 3, 0, 0, 1], atol=1e-12)


def test_leading_components_are_approximated_and_keep_their_share_of_the_whole() -> None:
    """Where the spectrum falls, the randomised method finds them; energy is of the whole head."""
    weight = make_head(600, 80, condition=1e4)
    found, whole = decompose_leading(TensorRows(weight), 10, seed=0), decompose_head(weight)
    assert found.v.shape == (80, 10)
    np.testing.assert_allclose(found.sigma, whole.sigma[:10], rtol=1e-6)
    np.testing.assert_allclose(found.energy_shares, whole.energy_shares[:10], rtol=1e-6)
    projector = whole.v[:, :10] @ whole.v[:, :10].T
    np.testing.assert_allclose(found.v @ found.v.T, projector, atol=1e-4)


def store(folder: Path, weight: torch.Tensor, dtype: str, **others: torch.Tensor) -> StoredHead:
    """A checkpoint with a head, for a model that runs in `dtype`, and the head found in it."""
    save_file(
        {"x.first": torch.zeros(3), "lm_head.weight": weight, **others}, folder / "a.safetensors"
    )
    held = weight.to(getattr(torch, dtype))
    head = {
        "name": "lm_head",
        "vocab": weight.shape[0],
        "hidden": weight.shape[1],
        "dtype": dtype,
        "digest": digest_tensor(held),
    }
    found = find_stored_head(folder, head)
    assert found is not None
    return found


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_is_read_from_its_file_as_the_model_holds_it(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    """Row for row torch's own values, for every stored dtype and every dtype of the model."""
    weight = (make_head(150, 24, 50.0) * 100).to(stored)
    head = store(tmp_path, weight, str(dtype).removeprefix("torch."))
    rows = np.concatenate([block.copy() for block in head.iterate_blocks()])
    np.testing.assert_array_equal(rows, weight.to(dtype).double().numpy())
    expected = np.linalg.svd(weight.to(dtype).double().numpy(), compute_uv=False)
    np.testing.assert_allclose(decompose_rows(head).sigma, expected, rtol=1e-9)


def test_rounding_to_bfloat16_equals_torchs() -> None:
    """Ties to even, overflow to infinity, NaN stays NaN."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (20_000,), generator=generator, dtype=torch.int64)
    values = torch.cat([bits.to(torch.int32).view(torch.float32), torch.tensor([3.4e38, -0.0])])
    expected = values.to(torch.bfloat16)
    found = torch.from_numpy(convert(values.numpy(), "float32", "bfloat16").view(np.int16))
    is_nan = expected.isnan()
    assert torch.equal(found.view(torch.bfloat16).isnan(), is_nan)
    assert torch.equal(found[~is_nan], expected.view(torch.int16)[~is_nan])


def test_blocks_smaller_than_the_head_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing depends on how the rows are cut."""
    weight = make_head(301, 24, 50.0).float()
    head = store(tmp_path, weight, "float32")
    whole = decompose_rows(head).sigma
    monkeypatch.setattr("eigenshift.model.head_files.VALUES_PER_BLOCK", 24 * 7)
    assert head.compute_digest() == digest_tensor(weight)
    np.testing.assert_allclose(decompose_rows(head).sigma, whole, rtol=1e-12)


def test_a_tied_head_is_found_under_the_embeddings_name(tiny_model_folder: Path) -> None:
    """GPT-2 stores one tensor, called wte; its digest shows that it is the head."""
    language_model = load_model(ModelSettings(id=str(tiny_model_folder)), device="cpu")
    head = {
        "name": language_model.head.name,
        "vocab": language_model.head.vocab,
        "hidden": language_model.head.hidden,
        "dtype": "float32",
        "digest": digest_tensor(language_model.head_weight),
    }
    found = find_stored_head(tiny_model_folder, head)
    assert found is not None
    assert found.name.endswith("wte.weight")


def test_of_two_tensors_of_the_heads_shape_the_head_is_taken(tmp_path: Path) -> None:
    """The embedding of an untied model is not mistaken for its head, whatever the names."""
    weight, other = torch.randn(40, 8), torch.randn(40, 8)
    head = store(tmp_path, weight, "float32", **{"a.weight": other, "z.weight": other + 1})
    assert head.name == "lm_head.weight"
    description = {"name": "renamed", "vocab": 40, "hidden": 8, "dtype": "float32"}
    assert len(list_stored_heads(tmp_path, description)) == 3
    assert (
        find_stored_head(tmp_path, {**description, "digest": digest_tensor(other + 1)})
        == (list_stored_heads(tmp_path, description)[2])
    )


def test_a_file_cut_short_within_the_head_is_an_error(tmp_path: Path) -> None:
    """Rows that are not there do not become zeros."""
    head = store(tmp_path, torch.randn(40, 8), "float32")
    head.path.write_bytes(head.path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        decompose_rows(head)


def describe_head(folder: Path, dtype: str) -> tuple[ModelSettings, dict[str, object]]:
    """Settings of a model and its head as the model artifact describes it."""
    from eigenshift.model.description import describe_model
    from eigenshift.model.files import identify_model

    settings = ModelSettings(id=str(folder), dtype=dtype)
    description = describe_model(load_model(settings, device="cpu"), identify_model(settings))
    return settings, description["head"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_that_is_decomposed_is_the_one_the_model_runs_with(
    tiny_model_folder: Path, workspace: Workspace, dtype: str
) -> None:
    """Read from the file without loading the model, rounded as the model rounds it."""
    from safetensors.numpy import load_file

    settings, head = describe_head(tiny_model_folder, dtype)
    write_decomposition(
        settings, head, device="nowhere", n_leading=None, seed=0, workspace=workspace
    )
    weight = load_model(settings, device="cpu").head_weight
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    tensors = load_file(workspace.path(DECOMPOSITION_NAME))
    np.testing.assert_allclose(tensors["sigma"], expected, rtol=1e-9)
    assert str(workspace.facts["source"]).startswith("file ")
    assert workspace.facts["head_digest"] == digest_tensor(weight)


def test_a_head_no_file_holds_is_taken_from_the_model(
    tiny_model_folder: Path, workspace: Workspace
) -> None:
    """Where loading changes the weight, the file's tensor is not what the model runs with."""
    settings, head = describe_head(tiny_model_folder, "float32")
    head = {**head, "digest": "0" * 64}
    write_decomposition(settings, head, device="cpu", n_leading=None, seed=0, workspace=workspace)
    assert workspace.facts["source"] == "model"


def test_an_approximate_decomposition_says_so(
    tiny_model_folder: Path, workspace: Workspace
) -> None:
    """The manifest's facts tell it from an exact one."""
    settings, head = describe_head(tiny_model_folder, "float32")
    write_decomposition(settings, head, device="cpu", n_leading=5, seed=0, workspace=workspace)
    assert workspace.facts["n_components"] == 5
    assert workspace.facts["is_exact"] is False


def test_columns_of_v_are_orthonormal_without_copies_of_the_head() -> None:
    """A dataclass that others make from two arrays still describes itself."""
    found = Decomposition(np.array([2.0, 1.0]), np.eye(2))
    np.testing.assert_allclose(found.energy_shares, [0.8, 0.2])
