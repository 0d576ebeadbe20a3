"""Compare interventions and control arms on the same prompts, seeds and texts.

Started by `eigenshift compare` or from the Prefect UI. Shares every stage with the refresh, so
what a refresh of the same settings has done is not done again.
"""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from eigenshift.evaluation.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM
from eigenshift.interventions import Intervention, PatchRequest
from eigenshift.reporting import ArmComparison
from eigenshift.settings import RefreshSettings
from flows import stages
from flows.credentials import use_credentials
from flows.journal import RunJournal


@flow(name="compare", flow_run_name="compare-{settings.model.model_id}", result_serializer="json")
def compare(settings: RefreshSettings) -> ArmComparison:
    """Judge all interventions alike.

    Args:
        settings: Everything the run reads; see docs/settings.md.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("compare", settings)
    with journal.recording():
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        factor, seed = settings.components.factor, settings.components.seed
        requests = {PATCHED_ARM: PatchRequest(factor=factor)} | {
            arm: PatchRequest(intervention=intervention, factor=factor, seed=seed)
            for arm, intervention in {
                RANDOM_ARM: Intervention.random_components,
                "top_sigma": Intervention.top_sigma,
                "mean_difference": Intervention.mean_difference,
            }.items()
        }
        patches = stages.build_patches(journal, model, study, requests)
        arms = {
            BASE_ARM: stages.Arm(patch=None),
            AGAIN_ARM: stages.Arm(patch=None, stream="again"),
        } | {name: stages.Arm(patch=patch) for name, patch in patches.items()}
        evaluation = stages.evaluate_arms(journal, model, sources, arms)
        rows = journal.artifacts.open(evaluation).read_table("evaluations.parquet").to_pylist()
        comparison = ArmComparison(
            run_id=journal.record.run_id,
            store=journal.root,
            stages=journal.record.stages,
            evaluations=rows,
            arms=list(arms),
        )
    create_table_artifact(
        key="arm-comparison",
        table=[dict(zip(comparison.columns, row, strict=True)) for row in comparison.rows],
        description="All arms on the same prompts, seeds and texts",
    )
    return comparison


def run_compare(settings: RefreshSettings) -> ArmComparison:
    """Run the flow here."""
    runner = ThreadPoolTaskRunner(max_workers=settings.execution.concurrency)
    return compare.with_options(task_runner=runner)(settings)
