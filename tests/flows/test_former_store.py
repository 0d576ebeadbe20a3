"""A store written before stages declared themselves is as good as one written today."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from eigenshift.audit import open_audit
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.pipeline import BY_KIND
from eigenshift.settings import RefreshSettings, load_preset, parse_settings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.upkeep.verification import verify_store

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

FOLDER = Path(__file__).parents[1] / "golden" / "former_store"
DEMO = Path(__file__).parents[2] / "data" / "demo"
SOURCES = (
    "jigsaw/train.csv",
    "toxicn/ToxiCN_demo.csv",
    "rtp/prompts.jsonl",
    "neutral/sentences.csv",
)


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """The store, unpacked."""
    with tarfile.open(FOLDER / "store.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


@pytest.fixture
def settings(former: Path, tmp_path: Path) -> RefreshSettings:
    """Those it was made with, the sources where they lay then."""
    memory = fsspec.filesystem("memory")
    for name in SOURCES:
        memory.pipe(f"/former/{name}", (DEMO / name).read_bytes())
    words = tmp_path / "words.txt"
    words.write_text("table\nchair\n")
    overrides = yaml.safe_load((FOLDER / "overrides.yaml").read_text(encoding="utf-8"))
    scorer = f"further_scorers=[{{name: words, kind: lexicon, words: {words}}}]"
    return load_preset("demo", [*overrides, scorer, f"store={former}"])


def run_all(settings: RefreshSettings) -> dict[str, Any]:
    """Every command that makes artifacts but `detect`, whose stages are a refresh's."""
    from flows.compare import run_compare
    from flows.refresh import run_refresh
    from flows.tune import run_tune

    commands: dict[str, Callable[[RefreshSettings], Any]] = {
        "refresh": run_refresh,
        "tune": run_tune,
        "compare": run_compare,
    }
    return {name: command(settings) for name, command in commands.items()}


def test_nothing_is_done_again(former: Path, settings: RefreshSettings) -> None:
    """Refresh, tune and compare find every artifact; the numbers are those of then."""
    store = ArtifactStore(str(former)).store
    before = [read_run(store, run_id) for run_id in list_run_ids(store)]
    outcomes = run_all(settings)
    for name, outcome in outcomes.items():
        redone = {stage.name for stage in outcome.stages if stage.shards_cached < stage.shards}
        assert not redone, name
    (then,) = (record for record in before if record.command == "refresh")
    assert outcomes["refresh"].metrics == then.metrics
    assert outcomes["refresh"].checks == then.checks
    assert outcomes["refresh"].release == then.release


def test_it_is_sound_and_open_to_sql(former: Path) -> None:
    """Every file has the schema that its stage declares today; views have its rows."""
    report = verify_store(str(former))
    assert report.problems == []
    kinds = {path.name for path in (former / "artifacts").iterdir()}
    assert kinds == set(BY_KIND) - {"labelled_text"}
    with open_audit(str(former)) as session:
        for view in ("neurons", "layers", "components", "evaluations", "trials", "comparisons"):
            assert session.query(f"SELECT count(*) AS n FROM {view}")["n"].to_pylist() > [0], view


def test_its_run_records_can_be_read_and_their_settings_parsed(former: Path) -> None:
    """`components.factor`, which stood for two things then, is read as what it meant."""
    store = ArtifactStore(str(former)).store
    for run_id in list_run_ids(store):
        settings = parse_settings(read_run(store, run_id).settings, run_id)
        assert settings.components.least_factor == 0.0
