"""Search score, number of components and factor under a fluency budget.

Started by `eigenshift tune` or from the Prefect UI. Every point of the grid is screened in closed
form, and the best few are confirmed on the selection prompts, so the evaluation prompts and texts
stay unseen for the refresh that uses the result. Trials and their arms are in the store: a search
cut off goes on where it stopped.
"""

from __future__ import annotations

from prefect import flow

from eigenshift.evaluation.stages import CHART_NAME
from eigenshift.evaluation.trials import choose_for_confirmation
from eigenshift.readiness.preflight import require_inputs
from eigenshift.reporting.outcomes import Tuning
from eigenshift.settings import RefreshSettings
from eigenshift.stages import tables
from flows import stages, trials
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.publication import publish_tuning
from flows.run_labels import name_run
from flows.runners import run_tasks


@flow(name="tune", flow_run_name=name_run, result_serializer="json")
def tune(settings: RefreshSettings) -> Tuning:
    """Try every point of the grid and return them with the best within the budget.

    Args:
        settings: Everything the run reads; the grid is `settings.tune`.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("tune", settings)
    with journal.recording(), run_tasks(settings.execution):
        require_inputs(settings)
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        screening = trials.screen(journal, study, sources)
        screened = journal.read(screening.reference, tables.TRIALS)
        chosen = choose_for_confirmation(screened.to_pylist(), settings.tune.n_confirmed)
        points = {point.arm: point for point in chosen}
        patches = trials.build_trial_patches(journal, study, screening, points)
        confirmed = trials.confirm(journal, sources, screening, patches)
        artifact = journal.artifacts.open(confirmed)
        tuning = Tuning(
            run_id=journal.record.run_id,
            store=journal.root,
            stages=journal.record.stages,
            budget=settings.tune.max_perplexity_increase,
            trials=artifact.read_table(tables.TRIALS.file).to_pylist(),
            figure=artifact.locate(CHART_NAME).uri,
        )
    publish_tuning(tuning)
    return tuning


def run_tune(settings: RefreshSettings) -> Tuning:
    """Run the flow here."""
    return tune(settings)
