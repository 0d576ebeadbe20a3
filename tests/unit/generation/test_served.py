"""Arms by an engine: the patched weights are served, checked, and drawn from like our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.base.errors import ModelError
from eigenshift.components.decomposition import decompose_head
from eigenshift.generation.continuations import LoadedArm, generate_continuations
from eigenshift.generation.served import ServedShard, draw_seed, serve_continuations, weigh_tokens
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, ModelEdit, UnitEdit
from eigenshift.patches.patching import Patch, make_patch
from eigenshift.settings import ExecutionSettings, ModelSettings, SamplingSettings
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.workspace import Workspace
from tests.support.fake_vllm import NAMES, install_fake_vllm

SETTINGS = SamplingSettings(n_samples=2, n_tokens=5)
CERTAIN = SETTINGS.model_copy(update={"temperature": 1e-5})
"""Both loops draw the likeliest token."""
Rows = list[dict[str, Any]]


@pytest.fixture
def prompts(neutral_texts: list[str]) -> pa.Table:
    """Six prompts of different lengths."""
    rows = [
        {
            "prompt_id": f"p{place}",
            "part": "evaluation",
            "dataset": "made-up",
            "language": "en",
            "toxicity": None,
            "prompt": text,
        }
        for place, text in enumerate(neutral_texts[:6])
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PROMPTS)


@pytest.fixture(scope="module")
def patches(tiny_language_model: LanguageModel) -> dict[str, Patch]:
    """One of the head, which is tied, and one of the trunk."""
    v = decompose_head(tiny_language_model.head_weight).v
    units = {"transformer.h.1.mlp.c_fc": UnitEdit.scale_units(np.linspace(0, 1, 128))}
    edits = {
        "head": ModelEdit(HeadEdit.scale_directions(v[:, :6], 0.0)),
        "units": ModelEdit(units=units),
    }
    return {
        name: make_patch(tiny_language_model, edit, model_id="tiny", intervention=name)
        for name, edit in edits.items()
    }


def serve(
    folder: Path,
    out: Path,
    patch: Patch | None,
    shards: Mapping[str, tuple[pa.Table, str]],
    settings: SamplingSettings = SETTINGS,
) -> dict[str, Rows]:
    """Serve the tiny model and read every shard's table back; prompts and stream by name."""
    workspaces = {}
    for name in shards:
        (out / name).mkdir(parents=True)
        workspaces[name] = Workspace(out / name)
    served = serve_continuations(
        ModelSettings(id=str(folder)),
        patch,
        {name: ServedShard(*found, workspaces[name]) for name, found in shards.items()},
        settings,
        dtype="float32",
        execution=ExecutionSettings(device="cpu"),
    )
    assert list(served) == [(name,) for name in shards]
    for workspace in workspaces.values():
        assert workspace.facts["engine"] == f"vllm {NAMES['version']}"
    return {
        name: pq.read_table(workspace.path("continuations.parquet")).to_pylist()
        for name, workspace in workspaces.items()
    }


@pytest.mark.parametrize("name", ["base", "head", "units"])
def test_an_engine_serves_what_our_own_loop_runs(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tiny_language_model: LanguageModel,
    tiny_model_folder: Path,
    patches: dict[str, Patch],
    prompts: pa.Table,
    tmp_path: Path,
) -> None:
    """Where the likeliest token is drawn, the same tables, token by token and text by text."""
    install_fake_vllm(monkeypatch)
    patch = patches.get(name)
    found = serve(tiny_model_folder, tmp_path, patch, {"one": (prompts, "main")}, CERTAIN)
    (tmp_path / "own").mkdir()
    own = Workspace(tmp_path / "own")
    list(
        generate_continuations(
            tiny_language_model,
            prompts,
            {name: LoadedArm(patch)},
            CERTAIN,
            sequences_per_batch=64,
            workspaces={name: own},
        )
    )
    assert found["one"] == pq.read_table(own.path("continuations.parquet")).to_pylist()


def test_one_engine_serves_all_shards_of_an_arm(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model_folder: Path,
    patches: dict[str, Patch],
    prompts: pa.Table,
    tmp_path: Path,
) -> None:
    """It is started once and let go of; its copy of the weights is removed."""
    engine_class = install_fake_vllm(monkeypatch)
    shards = {"a": (prompts[:3], "main"), "b": (prompts[3:], "main"), "c": (prompts[:3], "again")}
    found = serve(tiny_model_folder, tmp_path, patches["head"], shards)
    assert [len(rows) for rows in found.values()] == [6, 6, 6]
    assert len(engine_class.started) == 1
    assert engine_class.n_alive == 0
    assert not Path(engine_class.started[0]["model"]).exists()
    assert not list(scratch_folder().glob("served-*"))
    drawn = {name: [row["token_ids"] for row in rows] for name, rows in found.items()}
    assert drawn["a"] != drawn["c"]


def test_a_continuation_does_not_depend_on_its_shard(
    monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path, prompts: pa.Table, tmp_path: Path
) -> None:
    """Its seed is of the prompt and the sample; the base is served from its own folder."""
    engine_class = install_fake_vllm(monkeypatch)
    whole = serve(tiny_model_folder, tmp_path / "1", None, {"all": (prompts, "main")})["all"]
    parts = {"a": (prompts[:2], "main"), "b": (prompts[2:], "main")}
    split = serve(tiny_model_folder, tmp_path / "2", None, parts)
    assert whole == [*split["a"], *split["b"]]
    assert {started["model"] for started in engine_class.started} == {str(tiny_model_folder)}


def test_a_head_that_the_engine_leaves_out_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model_folder: Path,
    patches: dict[str, Patch],
    prompts: pa.Table,
    tmp_path: Path,
) -> None:
    """Some classes take the embedding for the head: what is served then is the base again."""
    engine_class = install_fake_vllm(monkeypatch, ties_head=True)
    with pytest.raises(ModelError, match="expected the engine to serve the model that is studied"):
        serve(tiny_model_folder, tmp_path, patches["head"], {"one": (prompts, "main")})
    assert engine_class.n_alive == 0
    serve(tiny_model_folder, tmp_path / "units", patches["units"], {"one": (prompts, "main")})


def test_a_small_patch_that_is_left_out_is_told_from_rounding(
    monkeypatch: pytest.MonkeyPatch,
    tiny_language_model: LanguageModel,
    tiny_model_folder: Path,
    prompts: pa.Table,
    tmp_path: Path,
) -> None:
    """Though it is within what kernels may differ by, the base is nearer."""
    v = decompose_head(tiny_language_model.head_weight).v
    edit = ModelEdit(HeadEdit.scale_directions(v[:, 8:9], 0.5))
    patch = make_patch(tiny_language_model, edit, model_id="tiny", intervention="small")
    install_fake_vllm(monkeypatch, ties_head=True)
    with pytest.raises(ModelError, match="left the patch out"):
        serve(tiny_model_folder, tmp_path, patch, {"one": (prompts, "main")})


def test_the_model_is_the_base_again_after_it_was_written(
    monkeypatch: pytest.MonkeyPatch,
    tiny_language_model: LanguageModel,
    tiny_model_folder: Path,
    patches: dict[str, Patch],
    prompts: pa.Table,
    tmp_path: Path,
) -> None:
    """Its parameters, byte for byte, and its tying."""
    install_fake_vllm(monkeypatch)
    before = {name: value.clone() for name, value in tiny_language_model.model.state_dict().items()}
    serve(tiny_model_folder, tmp_path, patches["head"], {"one": (prompts, "main")})
    after = tiny_language_model.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert tiny_language_model.model.config.tie_word_embeddings


def test_seeds_are_of_their_arguments_alone() -> None:
    """Every (seed, stream, prompt, sample) has one of its own, below 2^63."""
    cases = [
        (seed, stream, prompt, sample)
        for seed in (0, 1)
        for stream in ("main", "again")
        for prompt in ("p1", "p2")
        for sample in (0, 1)
    ]
    seeds = [draw_seed(*case) for case in cases]
    assert len(set(seeds)) == len(cases)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert seeds == [draw_seed(*case) for case in cases]


def test_tokens_are_weighed_whatever_the_batch(tiny_language_model: LanguageModel) -> None:
    """Padding changes nothing, and comes to nothing itself."""
    sequences = [[5, 9, 70], [11, 12], [5, 9, 70, 4, 8]]
    together = weigh_tokens(tiny_language_model, sequences)
    alone = [weigh_tokens(tiny_language_model, [sequence]) for sequence in sequences]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
