"""Nothing in a store or beside it is unpickled: a planted pickle is damage, never code."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import EigenShiftError, ScorerError
from eigenshift.settings import RefreshSettings
from eigenshift.upkeep.repair import repair_store
from eigenshift.upkeep.verification import verify_store

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self._sentinel = str(sentinel)

    def __reduce__(self) -> object:
        return os.mkdir, (self._sentinel,)


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """What is there once anybody has unpickled the bomb."""
    return tmp_path / "unpickled"


@pytest.fixture
def bomb(sentinel: Path) -> bytes:
    """A pickle that works."""
    data = pickle.dumps(Bomb(sentinel))
    pickle.loads(data)  # noqa: S301 - proves that the bomb goes off
    sentinel.rmdir()
    return data


def test_a_pickle_in_place_of_any_object_is_made_again_and_never_run(
    load_small: Callable[..., RefreshSettings], finished_store: Path, bomb: bytes, sentinel: Path
) -> None:
    """Every file of every artifact, manifests, run records and the pointer, all at once."""
    from prefect.settings import PREFECT_HOME

    from flows.refresh import run_refresh

    settings = load_small()
    store = Path(settings.store)
    shutil.copytree(finished_store, store)
    planted = [
        path
        for folder in ("artifacts", "runs")
        for path in (store / folder).rglob("*")
        if path.is_file()
    ]
    assert {path.suffix for path in planted} == {".json", ".parquet", ".safetensors"}
    for path in planted:
        path.write_bytes(bomb)
    results = PREFECT_HOME.value() / "storage"
    results.mkdir(parents=True, exist_ok=True)
    (results / "planted").write_bytes(bomb)
    with open_audit(settings.store) as session:
        assert session.query("select count(*) n from artifacts")["n"].to_pylist() == [0]
    verdict = verify_store(settings.store)
    assert len(verdict.problems) >= len({path.parent for path in planted})
    repair_store(settings.store, verdict)
    outcome = run_refresh(settings)
    assert all(stage.shards_cached < stage.shards for stage in outcome.stages[:1])
    assert not sentinel.exists()
    again = verify_store(settings.store)
    assert [line for line in again.problems if "releases/" not in line] == []


def test_a_pickle_as_classifier_or_model_is_refused(
    load_small: Callable[..., RefreshSettings], tmp_path: Path, bomb: bytes, sentinel: Path
) -> None:
    """Weights are opened as weights only."""
    from flows.refresh import run_refresh

    checkpoint = tmp_path / "classifier.ckpt"
    checkpoint.write_bytes(bomb)
    with pytest.raises(ScorerError):
        run_refresh(load_small(f"scorer.checkpoint={checkpoint}"))
    model = tmp_path / "model"
    shutil.copytree(load_small().model.id, model)
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    (model / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(EigenShiftError):
        run_refresh(load_small(f"model.id={model}"))
    assert not sentinel.exists()


def test_results_that_prefect_keeps_are_json(finished_store: Path) -> None:
    """No record of Prefect's is written into the store; where one is kept, it is JSON."""
    from prefect import Task

    from flows.compare import compare
    from flows.refresh import refresh
    from flows.tune import tune
    from tasks import stage

    tasks = [item for item in vars(stage).values() if isinstance(item, Task)]
    assert len(tasks) == 3  # one artifact, several in one pass, several one after another
    assert {item.result_serializer for item in (refresh, compare, tune, *tasks)} == {"json"}
    names = {path.relative_to(finished_store).parts[0] for path in finished_store.rglob("*")}
    assert names <= {"artifacts", "runs", "releases", "reproductions", "work", "present"}
