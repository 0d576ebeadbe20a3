"""Repeat the judging part of a refresh, and release nothing: what `eigenshift reproduce` runs.

Shares every stage with the refresh; detection is left out, since no number of the evaluation rests
on it. What the numbers are held against is `eigenshift/upkeep/replay.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow

from eigenshift.evaluation.gate import summarise_metrics
from eigenshift.ledger.runs import read_run
from eigenshift.settings import RefreshSettings
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.upkeep.replay import Replay, check_inputs, compare_metrics, list_notes
from eigenshift.upkeep.reproduction import Reproduction
from flows import stages, treatment
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.run_labels import name_run
from flows.runners import run_tasks


@flow(name="reproduce", flow_run_name=name_run)
def repeat(settings: RefreshSettings) -> str:
    """Build the patch, judge it, and hand back the run's id.

    Args:
        settings: Of the run to be repeated.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("reproduce", settings)
    with journal.recording(), run_tasks(settings.execution):
        treatment.require_interventions(settings)
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        patches = treatment.build_treatment(journal, sources, study)
        evaluation = treatment.evaluate_treatment(journal, model, sources, patches)
        rows = journal.read(evaluation, tables.EVALUATIONS).to_pylist()
        journal.record.metrics = summarise_metrics(rows, journal.record.judged)
    return journal.record.run_id


def run_reproduction(
    reproduction: Reproduction,
    settings: RefreshSettings,
    *,
    tolerance: float,
    overrides: Sequence[str] = (),
) -> Replay:
    """Repeat a run here and compare.

    Args:
        reproduction: What is repeated.
        settings: Its settings, with what was changed; the store is where the repeated run goes.
        tolerance: As `compare_metrics`.
        overrides: What was changed, to be told.

    Raises:
        SettingsError: The data, the model or a scorer is not what the run read.
    """
    check_inputs(reproduction, settings)
    run_id = repeat(settings)
    artifacts = ArtifactStore(settings.store)
    record = read_run(artifacts.store, run_id)
    evaluation = artifacts.open(record.find_artifact("evaluation"))
    rows = evaluation.read_table(tables.EVALUATIONS.file).to_pylist()
    differences, n_compared = compare_metrics(reproduction.metrics, rows, tolerance)
    return Replay(
        run_id=run_id,
        recorded_run_id=reproduction.run_id,
        store=artifacts.store.root,
        tolerance=tolerance,
        n_compared=n_compared,
        differences=differences,
        notes=list_notes(reproduction, overrides),
    )
