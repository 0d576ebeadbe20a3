"""Search the number of components and the factor under a fluency budget.

Started by `eigenshift tune` or from the Prefect UI. Trials are judged on the selection prompts, so
the evaluation prompts stay unseen for the refresh that uses the result. Every trial is an arm in
the store: a search cut off goes on where it stopped.
"""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from eigenshift.evaluation.arms import BASE_ARM
from eigenshift.interventions import PatchRequest
from eigenshift.prompts import Part
from eigenshift.reporting import Trial, Tuning
from eigenshift.settings import RefreshSettings
from flows import stages
from flows.credentials import use_credentials
from flows.journal import RunJournal


@flow(name="tune", flow_run_name="tune-{settings.model.model_id}", result_serializer="json")
def tune(settings: RefreshSettings) -> Tuning:
    """Try every point of the grid and return them with the best within the budget.

    Args:
        settings: Everything the run reads; the grid is `settings.tune`.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("tune", settings)
    with journal.recording():
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        requests = {
            f"k={k},factor={factor:g}": PatchRequest(n_components=k, factor=factor)
            for k in settings.tune.n_components
            for factor in settings.tune.factors
        }
        evidence = stages.gather_evidence(journal, sources, study)
        patches = stages.build_patches(journal, model, evidence, requests)
        arms = {BASE_ARM: stages.Arm(patch=None)} | {
            name: stages.Arm(patch=patch) for name, patch in patches.items()
        }
        evaluation = stages.evaluate_arms(journal, model, sources, arms, Part.selection)
        rows = journal.artifacts.open(evaluation).read_table("evaluations.parquet").to_pylist()
        tuning = Tuning(
            run_id=journal.record.run_id,
            store=journal.root,
            stages=journal.record.stages,
            budget=settings.tune.max_perplexity_increase,
            trials=[
                Trial.from_rows(rows, name, request.n_components or 0, request.factor)
                for name, request in requests.items()
            ],
        )
    return tuning


def run_tune(settings: RefreshSettings) -> Tuning:
    """Run the flow here."""
    runner = ThreadPoolTaskRunner(max_workers=settings.execution.concurrency)
    return tune.with_options(task_runner=runner)(settings)
