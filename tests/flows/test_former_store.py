"""A store written before stages declared themselves is as good as one written today."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from eigenshift.audit import open_audit
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.pipeline import BY_KIND
from eigenshift.settings import parse_settings
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.upkeep.verification import verify_store

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

MADE_SINCE = (
    *("harmless_texts", "fisher_components", "fluency_indomain", "intervention_choice"),
    "survival",
    *("benchmark_answers", "benchmarks", "predicted_trials"),
    *("scorer_quality", "long_continuations", "long_scores", "confirmation"),
)
FOLDER = Path(__file__).parents[1] / "golden" / "former_store"


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """The store, unpacked."""
    with tarfile.open(FOLDER / "store.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "store"


def test_what_has_not_changed_is_found_again(former: Path) -> None:
    """Keys that are read back from manifests are what they were, so fingerprints are too.

    The demo it was made on is another one today; nothing but the keys can be compared.
    """
    artifacts = ArtifactStore(str(former))
    unchanged: set[str] = set()
    for manifest in artifacts.list_manifests():
        stage = BY_KIND[manifest.kind]
        if manifest.step_version == stage.version:
            try:
                key = stage.key.model_validate(manifest.settings)
            except ValidationError:
                continue  # a key that is written shorter than it is read, such as names of columns
            assert key.as_settings() == manifest.settings, manifest.kind
            unchanged.add(manifest.kind)
    assert {"samples", "activations", "continuations", "decomposition", "head_states"} <= unchanged


def test_it_is_sound_and_open_to_sql(former: Path) -> None:
    """Every file has the schema that its stage declares today; views have its rows."""
    report = verify_store(str(former))
    assert report.problems == []
    kinds = {path.name for path in (former / "artifacts").iterdir()}
    assert kinds == set(BY_KIND) - {"labelled_text", *MADE_SINCE}
    with open_audit(str(former)) as session:
        for view in ("neurons", "layers", "components", "evaluations", "trials", "comparisons"):
            assert session.query(f"SELECT count(*) AS n FROM {view}")["n"].to_pylist() > [0], view


def test_its_run_records_can_be_read_and_their_settings_parsed(former: Path) -> None:
    """`components.factor`, which stood for two things then, is read as what it meant."""
    store = ArtifactStore(str(former)).store
    for run_id in list_run_ids(store):
        settings = parse_settings(read_run(store, run_id).settings, run_id)
        assert settings.components.least_factor == 0.0
