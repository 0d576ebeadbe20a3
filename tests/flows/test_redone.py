"""Changing one setting redoes exactly the stages that read it, and what follows from them.

For every field of the settings. The flows run as they are; only the work is left out: a stage that
would work is given the files of the artifact in whose place its own would be.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eigenshift.pipeline import BY_KIND, find_readers
from eigenshift.settings import RefreshSettings, Role, load_preset
from eigenshift.stages.running import run_stage, run_stage_together
from eigenshift.stages.stage import Stage
from eigenshift.store.artifact import Artifact
from eigenshift.store.artifacts import StageResult
from eigenshift.store.manifests import ArtifactReference, Manifest
from eigenshift.store.workspace import Workspace
from flows import detection_stages, refresh, stages
from flows.journal import RunJournal
from flows.publication import RunProgress
from tests.flows.conftest import SMALL
from tests.support.settings_fields import change, list_fields

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

DETOURS = {
    "activations.layers": "the model's layers are counted by the artifact, not by the setting",
    "activations.sites": "columns of the activations are those of the copy",
    "components.states_from": "the copy of a store has no labelled texts to take the place of",
    "components.positions": "of labelled spans there are none",
    "components.factor": "in force only for a number of components",
    "components.lexicon": "belongs to another choice of positions",
    "sources[].role": "a source with another role takes another way",
    "sources[].format": "a file of another format cannot be listed alike",
    "sources[].uri": "no such file",
    "sources[].labels_uri": "no such file",
    "sources[].name": "another dataset, which the copy does not hold",
    "benchmark.tasks": "adds a stage that the copy does not hold",
    "generation.confirm_tokens": "adds stages that the copy does not hold",
    "gate.check_reload": "adds a stage that the copy does not hold",
    "model.id": "no such model",
    "model.chat": "the demo's model has no template; see `tests/unit/model/test_stages.py`",
    "model.system_prompt": "needs a template",
    "model.revision": "of a folder it is ignored: it has the same digest",
    "patch.intervention": "no such intervention",
    "patch.n_deep_terms": "of an intervention that the run does not judge",
    "scorer.checkpoint": "no such file",
    "scorer.config_folder": "no such folder",
    "scorer.judge": "belongs to another kind",
    "scorer.kind": "needs a model of its own",
    "scorer.model": "belongs to another kind",
    "scorer.revision": "belongs to another kind",
    "scorer.words": "belongs to another kind",
    "scorer.verdict": "belongs to another kind",
    "scorer.for_languages": "made of settings of its own",
    "scorer_quality.functional_cases": "no such file",
    "scorer.label": "made of the checkpoint's labels",
    "further_scorers": "made of settings of its own",
    "store": "another store has nothing in it",
}
"""Fields that cannot be changed alone in a store made before, and why; their keys are in
`tests/unit/test_pipeline.py`, their identities in `tests/unit/toxicity/`."""
READ_BY_OTHER_COMMANDS = ("tune.", "compare.")


class DoneFuture:
    """The future of work that is done."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout: float | None = None) -> Any:
        """What it made."""
        return self._result


class Quiet(RunProgress):
    """Shows nobody how far a run is."""

    def __init__(self) -> None:
        super().__init__("refresh")
        self._is_shown = False


@dataclass
class Pass:
    """What one pass over the stages asked for.

    Attributes:
        made: Stages that would have worked, with what each of their artifacts rests on.
        met: Artifacts in the order of each stage's pieces.
    """

    made: list[tuple[Stage[Any, Any], Manifest]] = field(default_factory=list)
    met: dict[str, list[ArtifactReference]] = field(default_factory=lambda: defaultdict(list))


class CopyingJournal(RunJournal):
    """Does the work of a stage by copying the files of the artifact in whose place it works."""

    def __init__(self, settings: RefreshSettings, before: Pass | None) -> None:
        super().__init__("refresh", settings)
        self._progress = Quiet()
        self.before = before
        self.found = Pass()
        self._counts: Counter[str] = Counter()

    def submit(self, stage: Any, inputs: Any, key: Any = None, label: str | None = None) -> Any:
        """Run at once, in this thread."""
        key = stage.key.of(self.settings) if key is None else key
        with self._copying(stage):
            result = run_stage(stage, inputs, key, self.place)
        self._enter(stage, [result])
        return DoneFuture(result)

    def run_in_turn(self, stage: Any, pieces: Iterable[Any]) -> Any:
        """Run at once, in this thread."""
        return self.collect(
            stage, [self.submit(stage, piece.inputs, piece.key) for piece in pieces]
        )

    def run_together(self, stage: Any, work: Iterable[Mapping[str, Any]]) -> Any:
        """Run at once, in this thread."""
        made = []
        for pieces in work:
            with self._copying(stage):
                results = run_stage_together(stage, pieces, self.place)
            self._enter(stage, list(results.values()))
            self._files |= {item.reference: item.files for item in results.values()}
            made.append({name: item.reference for name, item in results.items()})
        return made

    def _enter(self, stage: Stage[Any, Any], results: Sequence[StageResult]) -> None:
        for result in results:
            self.found.met[stage.name].append(result.reference)
            if not result.was_cached:
                manifest = self.artifacts.open(result.reference).manifest
                self.found.made.append((stage, manifest))

    @contextmanager
    def _copying(self, stage: Stage[Any, Any]) -> Generator[None, None, None]:
        def work(*given: Any) -> Any:
            if isinstance(given[-1], Mapping):
                return self._copy_together(stage, given[-1])
            return self._copy(stage, given[-1])

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Stage, "load_work", lambda _: work)
            yield

    def _copy_together(
        self, stage: Stage[Any, Any], workspaces: Mapping[str, Workspace]
    ) -> Generator[Sequence[str], None, None]:
        for name, workspace in workspaces.items():
            self._copy(stage, workspace)
            yield [name]

    def _copy(self, stage: Stage[Any, Any], workspace: Workspace) -> None:
        artifact = self._find_former(stage)
        for name in artifact.file_names:
            shutil.copy(artifact.fetch(name), workspace.path(name))
        workspace.facts = artifact.manifest.facts

    def _find_former(self, stage: Stage[Any, Any]) -> Artifact:
        """The artifact of the same piece; any of the stage's where there are more pieces now."""
        assert self.before is not None, f"{stage.name} would work on an unchanged store"
        former = self.before.met[stage.name]
        place = len(self.found.met[stage.name])
        return self.artifacts.open(former[min(place, len(former) - 1)])


def take_all_stages(settings: RefreshSettings, before: Pass | None = None) -> Pass:
    """The stages of a refresh, as its flow takes them."""
    journal = CopyingJournal(settings, before)
    model = stages.identify_model(journal)
    sources = stages.ingest(journal)
    detection_stages.study_detection(journal, model, sources.samples[Role.labelled])
    study = stages.study_components(journal, model, sources)
    refresh._judge_patch(journal, model, sources, study)
    return journal.found


@pytest.fixture(scope="module")
def store(finished_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished store, to which every change adds."""
    copy = tmp_path_factory.mktemp("redone") / "store"
    shutil.copytree(finished_store, copy)
    return copy


def test_each_setting_redoes_exactly_the_stages_that_read_it(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that declare it work again; others only because one of their inputs is another."""
    monkeypatch.setattr(stages, "require_backend", lambda _: None)  # no work is done
    former = take_all_stages(load_preset("demo", [*SMALL, f"store={store}"]))
    assert former.made == []
    # An approximate decomposition: the exact one reads no seed.
    approximate = "components.n_decomposed=20"
    settings = load_preset("demo", [*SMALL, f"store={store}", approximate])
    before = take_all_stages(settings, former)
    known = {(item.kind, item.fingerprint) for found in before.met.values() for item in found}
    paths = [
        path
        for path in list_fields(settings)
        if path not in DETOURS and not path.startswith(READ_BY_OTHER_COMMANDS)
    ]
    assert len(paths) > 60
    for path in paths:
        after = take_all_stages(change(settings, path), before)
        readers = {stage.name for stage in find_readers(path)} & set(before.met)
        redone = {stage.name for stage, _ in after.made}
        assert readers <= redone, f"{path}: not redone {readers - redone}"
        for stage, manifest in after.made:
            follows = any(
                item.kind in BY_KIND and (item.kind, item.fingerprint) not in known
                for item in manifest.inputs
            )
            assert stage.name in readers or follows, f"{path}: {stage.name} does not read it"


def test_the_fields_left_out_are_settings() -> None:
    """A field that is renamed is looked at again."""
    settings = load_preset("demo", list(SMALL))
    assert set(DETOURS) <= set(list_fields(settings))
