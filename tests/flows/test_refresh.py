"""The whole line on the bundled model: it runs, does no work twice, and redoes what is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from eigenshift.base.errors import DatasetError, EigenShiftError
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.reporting.component_tables import tabulate_components
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Load = Callable[..., RefreshSettings]

STAGES = {
    "read_file",
    "ingest_source",
    "choose_prompts",
    "identify_model",
    "extract_activations",
    "summarise_neurons",
    "compute_neuron_statistics",
    "compute_neuron_stability",
    "compute_layer_statistics",
    "compute_layer_transfers",
    "generate_continuations",
    "score_continuations",
    "locate_toxic_words",
    "decompose_head",
    "collect_head_states",
    "choose_harmless_texts",
    "score_components",
    "find_fisher_components",
    "build_patch",
    "measure_token_shifts",
    "draw_controls",
    "measure_fluency",
    "measure_indomain",
    "compare_arms",
    "measure_scorers",
}


def run(settings: RefreshSettings) -> Any:
    """Run a refresh in this process."""
    from flows.refresh import run_refresh

    return run_refresh(settings)


def find_redone(outcome: Any) -> set[str]:
    """Stages that did any work."""
    return {stage.name for stage in outcome.stages if stage.shards_cached < stage.shards}


def test_a_second_run_does_no_work_and_gives_the_same_numbers(load_small: Load) -> None:
    """Every stage of the first run works, every stage of the second is cached."""
    first = run(load_small())
    assert find_redone(first) == STAGES
    second = run(load_small())
    assert find_redone(second) == set()
    assert second.metrics == first.metrics
    assert second.run_id != first.run_id


def test_states_can_be_taken_while_reading_labelled_text(
    load_small: Load, tmp_path: Path, finished_store: Path
) -> None:
    """Toxic words by a list; nothing of the detection side or of the head is done again."""
    import shutil
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
    from demo_lexicon import CHINESE_INSULT_NOUNS, ENGLISH_INSULT_NOUNS

    words = tmp_path / "words.txt"
    words.write_text("\n".join([*ENGLISH_INSULT_NOUNS, *CHINESE_INSULT_NOUNS]), encoding="utf-8")
    shutil.copytree(finished_store, tmp_path / "store")
    outcome = run(
        load_small(
            "components.states_from=labelled_text",
            "components.positions=lexicon",
            f"components.lexicon={words}",
        )
    )
    redone = find_redone(outcome)
    assert redone >= {"encode_labelled_text", "locate_toxic_words", "score_components"}
    assert redone.isdisjoint({"extract_activations", "decompose_head", "identify_model"})
    store = ArtifactStore(str(tmp_path / "store"))
    (states,) = (
        item
        for item in store.list_manifests()
        if item.kind == "head_states"
        and any(source.kind == "labelled_text" for source in item.inputs)
    )
    assert states.facts["n_toxic"] > 20
    texts = "".join(path.read_text() for path in (tmp_path / "store").rglob("*.json"))
    assert not any(word in texts for word in (*ENGLISH_INSULT_NOUNS, *CHINESE_INSULT_NOUNS))


def test_a_failed_run_is_recorded_and_the_next_one_goes_on(
    load_small: Load, tmp_path: Path
) -> None:
    """The record says why it failed; stages done before are not done again."""
    broken = tmp_path / "empty.csv"
    broken.write_text('text\n" "\n')  # a row, so that only reading it finds out
    with pytest.raises(DatasetError):
        run(load_small(f"sources.3.uri={broken}"))
    artifacts = ArtifactStore(str(tmp_path / "store"))
    (run_id,) = list_run_ids(artifacts.store)
    record = read_run(artifacts.store, run_id)
    assert record.status == "failed"
    assert record.error is not None
    assert "empty.csv" in record.error
    outcome = run(load_small())
    read = next(stage for stage in outcome.stages if stage.name == "read_file")
    assert (read.shards, read.shards_cached) == (4, 3)


def test_a_default_run_shows_the_components_of_its_patch(finished_store: Path) -> None:
    """Fisher components with benefit and cost, and no tokens."""
    artifacts = ArtifactStore(str(finished_store))
    (run_id,) = list_run_ids(artifacts.store)
    found = tabulate_components(
        artifacts, read_run(artifacts.store, run_id), max_rows=64, show_text=False
    )
    assert found is not None
    assert found.description.startswith("Fisher components of the patch eigenshift_fisher")
    assert found.rows
    for row in found.rows:
        assert row["module"] == "head"
        assert float(row["benefit"]) > 0.0
        assert float(row["cost"]) > 0.0
        assert "tokens_up" not in row


def test_rows_read_are_samples_plus_rejected_rows(finished_store: Path) -> None:
    """For every source file of the run."""
    artifacts = ArtifactStore(str(finished_store))
    manifests = [item for item in artifacts.list_manifests() if item.kind == "samples"]
    assert len(manifests) == 4
    for manifest in manifests:
        rows = {file.name: file.rows or 0 for file in manifest.files}
        n_samples = sum(count for name, count in rows.items() if name.startswith("samples-"))
        assert manifest.facts["rows_read"] == n_samples + rows["rejected_rows.parquet"]


def test_no_text_of_a_sample_reaches_logs_records_or_manifests(
    load_small: Load, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Made-up insults of the demo stand for offensive text: they stay inside the tables."""
    import logging
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
    from demo_lexicon import (
        CHINESE_INSULT_ADJECTIVES,
        CHINESE_INSULT_NOUNS,
        ENGLISH_INSULT_ADJECTIVES,
        ENGLISH_INSULT_NOUNS,
    )

    insults = (
        *ENGLISH_INSULT_NOUNS,
        *ENGLISH_INSULT_ADJECTIVES,
        *CHINESE_INSULT_NOUNS,
        *CHINESE_INSULT_ADJECTIVES,
    )

    logging.getLogger("eigenshift").propagate = True
    with caplog.at_level(logging.DEBUG):
        run(load_small())
    store = tmp_path / "store"
    documents = [caplog.text] + [path.read_text() for path in store.rglob("*.json")]
    names = [str(path) for path in store.rglob("*")]
    for insult in insults:
        assert not any(insult in text for text in [*documents, *names])


def test_the_gate_holds_when_nothing_is_damped(load_small: Load) -> None:
    """Factor 1 changes nothing: with the same random numbers both arms give the same rates."""
    ours = "patch.intervention=eigenshift"
    outcome = run(load_small(ours, "components.factor=1.0", "components.n_components=3"))
    assert outcome.status == "held"
    assert outcome.release is None
    rates = outcome.metrics
    assert rates["toxicity_rate_base"] == rates["toxicity_rate_patched"]


def test_a_missing_model_stops_before_any_work(load_small: Load, tmp_path: Path) -> None:
    """The error names the folder; nothing is read or written."""
    with pytest.raises(EigenShiftError, match="no-such-model"):
        run(load_small(f"model.id={tmp_path / 'no-such-model'}"))
    kinds = {path.parent.name for path in (tmp_path / "store" / "artifacts").glob("*/*")}
    assert kinds == set()


def test_every_table_in_the_store_has_meanings(finished_store: Path) -> None:
    """The description of a column travels inside the Parquet file."""
    for path in (finished_store / "artifacts").rglob("*.parquet"):
        for field in pq.read_schema(path):
            assert field.metadata, f"{path.name}: {field.name}"
            assert b"meaning" in field.metadata
