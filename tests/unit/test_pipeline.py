"""What the declarations of all stages promise together."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from eigenshift import pipeline
from eigenshift.components.stages import DecompositionInputs, DecompositionKey, HarmlessKey
from eigenshift.generation.stages import GENERATE_CONTINUATIONS, GENERATE_LONG
from eigenshift.patches.requests import PatchRequest
from eigenshift.patches.stages import FisherKey, FisherPlace
from eigenshift.pipeline import BY_KIND, STAGES, covers, find_readers, list_redone
from eigenshift.settings import BlockFormat, RefreshSettings, load_preset
from eigenshift.stages.inputs import Of
from eigenshift.stages.keys import Key
from eigenshift.stages.stage import Bench, Stage
from eigenshift.store.manifests import OUTSIDE_KINDS
from eigenshift.store.workspace import Workspace
from tests.support.settings_fields import change, list_fields

FURTHER = "further_scorers=[{name: words, kind: lexicon, words: w.txt}]"
LONG = "generation.confirm_tokens=100"
VARIANTS = (
    load_preset("demo", [FURTHER, LONG, "components.n_decomposed=20"]),
    load_preset("demo", [FURTHER, LONG, "components.n_components=3", "model.name=null"]),
)
"""Settings in which every field is in force in one or the other."""
LATE = {
    "Bench": Bench,
    "Workspace": Workspace,
    "DecompositionInputs": DecompositionInputs,
    "DecompositionKey": DecompositionKey,
}
"""Imported for types only by a module whose process stays small."""
GIVEN: dict[str, Callable[[RefreshSettings], Any]] = {
    "dataset": lambda _: "demo",
    "datasets": lambda _: ("one", "two"),
    "layer": lambda _: 1,
    "arm": lambda _: "eigenshift",
    "formats": lambda _: (BlockFormat.q8_0,),
    "is_whole": lambda _: False,
    "stream": lambda _: "main",
    "arms": lambda _: ("base",),
    "patched": lambda _: (),
    "automatic_factors": lambda _: (),
    "request": lambda settings: PatchRequest(
        seed=settings.components.seed,
        max_perplexity_increase=settings.components.max_perplexity_increase,
    ),
    "n_texts": lambda settings: settings.evaluation.max_texts,
    "source": lambda settings: settings.sources[0],
}
"""What flows decide, where a stage's key asks for it."""


def make_keys(stage: Stage[Any, Any], settings: RefreshSettings) -> list[Key]:
    """What a stage is given of these settings; of some a run gives several."""
    if stage.key is HarmlessKey:
        calibration = HarmlessKey.of(settings, for_calibration=True)
        return [calibration, HarmlessKey.of_evaluation(settings)]
    if stage.key is FisherKey:
        budget = settings.components.max_perplexity_increase
        return [FisherKey.of_place(settings, place, budget) for place in FisherPlace]
    given = {name: make(settings) for name, make in GIVEN.items() if name in stage.key.model_fields}
    if stage.name == "ingest_source":
        given["source"] = settings.sources[0].name
    if stage.name == "score_further":
        given["scorer"] = settings.further_scorers[0].name
    return [stage.key.of(settings, **given)]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_key_holds_exactly_the_settings_it_declares(stage: Stage[Any, Any]) -> None:
    """Each field of the settings changed in turn: another key where it is declared, else the same.

    Work is given no settings but its key (`test_work_takes_what_its_stage_declares`), so what is
    not declared is not read.
    """
    paths = set(stage.key.list_paths())
    for path in dict.fromkeys(path for item in VARIANTS for path in list_fields(item)):
        keys = [
            pair
            for item in VARIANTS
            if path in set(list_fields(item))
            for pair in zip(
                make_keys(stage, item), make_keys(stage, change(item, path)), strict=True
            )
        ]
        # What the work is given and what is in the fingerprint change together.
        assert all((a == b) == (a.as_settings() == b.as_settings()) for a, b in keys), path
        has_changed = any(a != b for a, b in keys)
        is_declared = any(covers(read, path) for read in paths)
        assert has_changed == is_declared, path


def test_every_declared_path_is_a_setting() -> None:
    """A field that is renamed does not drop out of a key unseen."""
    fields = {path for item in VARIANTS for path in list_fields(item)}
    for stage in STAGES:
        for read in (*stage.key.list_paths(), *stage.inputs.list_paths()):
            assert any(covers(read, path) for path in fields), f"{stage.name}: {read}"


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_work_takes_what_its_stage_declares(stage: Stage[Any, Any]) -> None:
    """Its inputs, its key, a bench and a workspace, and no settings beside them."""
    work = stage.load_work()
    hints = {
        name: hint
        for name, hint in typing.get_type_hints(
            work, {**vars(inspect.getmodule(work)), **LATE}
        ).items()
        if name != "return"
    }
    if stage in (GENERATE_CONTINUATIONS, GENERATE_LONG):
        piece = hints["pieces"].__args__[1]
        assert piece.__args__ == (stage.inputs, stage.key)
        assert (hints["bench"], hints["workspaces"]) == (Bench, Mapping[str, Workspace])
        return
    assert list(hints) == ["inputs", "key", "bench", "workspace"]
    assert (hints["bench"], hints["workspace"]) == (Bench, Workspace)
    assert issubclass(stage.inputs, hints["inputs"])
    assert stage.key is hints["key"] or stage.key in typing.get_args(hints["key"])


def test_names_and_kinds_are_their_own() -> None:
    """A record names a stage, a store a kind: each stands for one."""
    assert len({stage.name for stage in STAGES}) == len(STAGES) == len(BY_KIND)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_input_is_what_some_stage_writes(stage: Stage[Any, Any]) -> None:
    """Kinds and tables of the edges are declared by those who make them."""
    for name, edge in stage.inputs.list_edges():
        if not isinstance(edge, Of):
            assert edge.kind in OUTSIDE_KINDS
            continue
        for kind in edge.kinds:
            assert edge.table is None or edge.table in BY_KIND[kind].tables, f"{name}: {kind}"


def test_kinds_outside_the_store_are_those_that_manifests_know() -> None:
    """Lineage ends there."""
    assert pipeline.list_outside_kinds() == OUTSIDE_KINDS


def test_declarations_are_read_without_the_work() -> None:
    """Nothing that needs them waits for torch."""
    code = "import sys, eigenshift.pipeline; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_readers_and_followers_are_known_without_a_run() -> None:
    """What `docs/settings.md` says of a field."""
    assert [stage.name for stage in find_readers("statistics.n_resamples")] == [
        "compute_neuron_stability"
    ]
    assert find_readers("execution.device") == find_readers("gate.max_kl_to_base") == []
    (stage,) = find_readers("activations.precision")
    assert [item.name for item in list_redone(stage)] == [
        "extract_activations",
        "summarise_neurons",
        "compute_neuron_statistics",
        "compute_neuron_stability",
        "compute_layer_statistics",
        "compute_layer_transfers",
    ]
    redone = {item.name for item in list_redone(BY_KIND["patch"])}
    assert {"generate_continuations", "compare_arms", "check_reload"} <= redone
    assert redone.isdisjoint({"locate_toxic_words", "collect_head_states", "score_components"})
