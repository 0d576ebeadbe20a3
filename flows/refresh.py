"""The refresh: from sources to a released patch.

Started by `eigenshift refresh`, `python -m flows.refresh`, or from the Prefect UI, where
`RefreshSettings` is the form. Returns a `RefreshOutcome`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled, State
from prefect.task_runners import ThreadPoolTaskRunner

from eigenshift.artifacts import Artifact, ArtifactReference
from eigenshift.evaluation.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM
from eigenshift.gate import Check, check_gate, summarise_metrics
from eigenshift.interventions import PatchRequest
from eigenshift.releases import promote_patch
from eigenshift.reporting import RefreshOutcome, describe_outcome
from eigenshift.runs import finish_run
from eigenshift.settings import RefreshSettings, Role
from flows import stages
from flows.credentials import use_credentials
from flows.journal import RunJournal, logger
from flows.overlap import OverlapError, one_refresh_at_a_time


@flow(name="refresh", flow_run_name="refresh-{settings.model.model_id}", result_serializer="json")
def refresh(settings: RefreshSettings) -> RefreshOutcome | State[RefreshOutcome]:
    """Find what makes a model generate toxicity, patch it, prove it, and release it or say why not.

    Args:
        settings: Everything the run reads; see docs/settings.md.
    """
    use_credentials(settings.execution.credentials_block)
    try:
        with one_refresh_at_a_time(settings):
            return _refresh(settings)
    except OverlapError as error:
        return Cancelled(message=str(error))


def _refresh(settings: RefreshSettings) -> RefreshOutcome:
    journal = RunJournal("refresh", settings)
    with journal.recording():
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        stages.study_detection(journal, model, sources.samples[Role.labelled])
        study = stages.study_components(journal, model, sources)
        evidence = stages.gather_evidence(journal, sources, study)
        patches = stages.build_patches(journal, model, evidence, _request_patches(settings))
        arms = {
            BASE_ARM: stages.Arm(patch=None),
            AGAIN_ARM: stages.Arm(patch=None, stream="again"),
            RANDOM_ARM: stages.Arm(patch=patches[RANDOM_ARM]),
            PATCHED_ARM: stages.Arm(patch=patches[PATCHED_ARM]),
        }
        evaluation = stages.evaluate_arms(journal, model, sources, arms)
        outcome = _decide(journal, journal.artifacts.open(evaluation), patches[PATCHED_ARM])
    create_markdown_artifact(
        key="refresh-outcome", markdown=describe_outcome(outcome), description="Outcome"
    )
    return outcome


def _request_patches(settings: RefreshSettings) -> dict[str, PatchRequest]:
    components = settings.components
    return {
        PATCHED_ARM: PatchRequest(factor=components.factor),
        RANDOM_ARM: PatchRequest(
            intervention=RANDOM_ARM,
            factor=components.factor,
            seed=components.seed,
        ),
    }


def _decide(journal: RunJournal, evaluation: Artifact, patch: ArtifactReference) -> RefreshOutcome:
    """Apply the gate, release or hold, and finish the record."""
    record = journal.record
    rows = evaluation.read_table("evaluations.parquet").to_pylist()
    checks = check_gate(rows, journal.settings.gate)
    record.metrics = summarise_metrics(rows)
    record.checks = [check.as_dict() for check in checks]
    failed = [check for check in checks if not check.is_passed]
    if failed:
        for check in failed:
            logger.warning(
                "held: %s: expected %s, found %s", check.name, check.expected, check.found
            )
        finish_run(record, "held")
        return RefreshOutcome.from_record(record, journal.root, rows, is_new_release=False)
    release, is_new = promote_patch(
        journal.artifacts.store, record.model_id, record.run_id, patch, _give_reason(checks)
    )
    record.release = release.version
    logger.info("released %s%s", release.version, "" if is_new else " (already in force)")
    finish_run(record, "promoted")
    return RefreshOutcome.from_record(record, journal.root, rows, is_new_release=is_new)


def _give_reason(checks: Sequence[Check]) -> str:
    return "; ".join(f"{check.name} ({check.found})" for check in checks)


def run_refresh(settings: RefreshSettings) -> RefreshOutcome:
    """Run the flow here, with as many tasks at once as the settings say.

    Raises:
        OverlapError: Another refresh of the model is running, and the policy is to cancel.
    """
    runner = ThreadPoolTaskRunner(max_workers=settings.execution.concurrency)
    try:
        return refresh.with_options(task_runner=runner)(settings)
    except CancelledRun as error:
        raise OverlapError(str(error)) from error


if __name__ == "__main__":
    from flows.command_line import main

    main(["refresh", *(sys.argv[1:] or ["--preset", "demo"])])
