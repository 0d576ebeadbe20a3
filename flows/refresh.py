"""The refresh: from sources to a released patch.

Started by `eigenshift refresh` or from the Prefect UI, where `RefreshSettings` is the form. Returns
a `RefreshOutcome`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled, Completed

from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import NothingToDampError
from eigenshift.evaluation.capability import check_capability, summarise_capability
from eigenshift.evaluation.gate import (
    GateCheck,
    check_confirmation,
    check_draws,
    check_gate,
    check_reload,
    refuse_control,
    refuse_patch,
    summarise_metrics,
)
from eigenshift.evaluation.headlines import summarise_quality
from eigenshift.ledger.releases import promote_patch
from eigenshift.ledger.runs import finish_run
from eigenshift.patches.stages import HeadEvidence
from eigenshift.readiness.preflight import require_inputs
from eigenshift.reporting.outcomes import RefreshOutcome, explain_hold, summarise_outcome
from eigenshift.settings import RefreshSettings, Role
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference
from eigenshift.upkeep.reproduction import write_reproduction
from flows import benchmarking, detection_stages, judging, stages, treatment
from flows.assets import tell_released
from flows.credentials import use_credentials
from flows.journal import RunJournal, logger
from flows.overlap import OverlapError, one_refresh_at_a_time
from flows.publication import publish_refresh
from flows.run_labels import name_run
from flows.runners import run_tasks

HELD = "Held"
"""Name of the final state of a run whose patch the gate held."""


@dataclass(frozen=True)
class Measured:
    """What a refresh measured.

    Attributes:
        rows: `schemas.EVALUATIONS` rows.
        quality: `schemas.SCORER_QUALITY` rows.
        answered: `schemas.BENCHMARKS` rows.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    quality: Sequence[Mapping[str, Any]] = ()
    answered: Sequence[Mapping[str, Any]] = ()


@flow(name="refresh", flow_run_name=name_run, result_serializer="json")
def refresh(settings: RefreshSettings) -> RefreshOutcome | State[RefreshOutcome]:
    """Find what makes a model generate toxicity, patch it, prove it, and release it or say why not.

    Args:
        settings: Everything the run reads; see docs/settings.md.
    """
    return carry_out(settings)


def carry_out(settings: RefreshSettings) -> State[RefreshOutcome]:
    """The body of a flow that refreshes; returns its final state."""
    use_credentials(settings.execution.credentials_block)
    try:
        with one_refresh_at_a_time(settings):
            outcome = _refresh(settings)
    except OverlapError as error:
        return Cancelled(message=str(error))
    if outcome.status == "held":
        # A name of its own, so that the UI shows it and automations can react to it.
        return Completed(name=HELD, message=explain_hold(outcome.checks), data=outcome)
    return Completed(message=summarise_outcome(outcome), data=outcome)


def _refresh(settings: RefreshSettings) -> RefreshOutcome:
    journal = RunJournal("refresh", settings)
    with journal.recording(), run_tasks(settings.execution):
        treatment.require_interventions(settings)
        require_inputs(settings)
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        detection_stages.study_detection(journal, model, sources.samples[Role.labelled])
        try:
            study = stages.study_components(journal, model, sources)
            outcome = _judge_patch(journal, model, sources, study)
        except NothingToDampError as error:
            outcome = _hold(journal, [refuse_patch(error)], Measured())
    publish_refresh(outcome, settings, journal.record)
    return outcome


def _judge_patch(
    journal: RunJournal,
    model: ArtifactReference,
    sources: stages.Sources,
    study: HeadEvidence,
) -> RefreshOutcome:
    """Build the patch and its controls, evaluate them, and decide.

    Raises:
        NothingToDampError: No patch does anything within the budget.
    """
    patches = treatment.build_treatment(journal, sources, study)
    judged = journal.record.judged
    patch = patches[judged]
    shifts = judging.measure_token_shifts(journal, study, patch)
    evaluation = treatment.evaluate_treatment(journal, model, sources, patches)
    rows = journal.read(evaluation, tables.EVALUATIONS).to_pylist()
    quality = judging.measure_scorers(journal, sources)
    gate = journal.settings.gate
    checks = check_gate(rows, gate, judged, journal.read_facts(shifts))
    if gate.n_random_draws:
        drawn = judging.draw_controls(journal, study, patch)
        checks.append(check_draws(journal.read_facts(drawn), gate))
    answered = benchmarking.measure_benchmarks(journal, model, {BASE_ARM: None, judged: patch})
    checks += check_capability(answered, gate, judged)
    if journal.settings.components.permute_labels:
        checks.append(refuse_control())
    if all(check.is_passed for check in checks):
        long = judging.confirm_at_length(journal, model, sources, patch)
        checks += check_confirmation(long, gate, judged) if long else []
    if gate.check_reload and all(check.is_passed for check in checks):
        reloaded = judging.check_reload(journal, model, sources, patch)
        checks.append(check_reload(journal.read_facts(reloaded)))
    journal.record.metrics = summarise_metrics(rows, judged)
    journal.record.metrics |= summarise_capability(answered, judged)
    journal.record.metrics |= summarise_quality(quality, journal.settings.scorer.name)
    measured = Measured(rows, quality, answered)
    if all(check.is_passed for check in checks):
        return _release(journal, checks, measured, patch)
    return _hold(journal, checks, measured)


def _hold(journal: RunJournal, checks: Sequence[GateCheck], measured: Measured) -> RefreshOutcome:
    """Release nothing, and say why."""
    record = journal.record
    record.checks = [check.as_dict() for check in checks]
    for check in checks:
        if not check.is_passed:
            logger.warning("held: %s", check.explain())
    finish_run(record, "held")
    return _gather(journal, measured, is_new_release=False)


def _release(
    journal: RunJournal,
    checks: Sequence[GateCheck],
    measured: Measured,
    patch: ArtifactReference,
) -> RefreshOutcome:
    """Put the patch in force and finish the record."""
    record = journal.record
    record.checks = [check.as_dict() for check in checks]
    where = write_reproduction(journal.artifacts, record)
    logger.info("written for `eigenshift reproduce`: %s", where)
    release, is_new = promote_patch(
        journal.artifacts.store,
        record.model_id,
        record.run_id,
        patch,
        reason=_give_reason(checks),
        model_digest=record.model_digest,
    )
    record.release = release.version
    logger.info("released %s%s", release.version, "" if is_new else " (already in force)")
    if is_new:
        tell_released(record)
    finish_run(record, "promoted")
    return _gather(journal, measured, is_new_release=is_new)


def _gather(journal: RunJournal, measured: Measured, *, is_new_release: bool) -> RefreshOutcome:
    return RefreshOutcome.from_record(
        journal.record,
        journal.root,
        measured.rows,
        measured.answered,
        quality=measured.quality,
        is_new_release=is_new_release,
    )


def _give_reason(checks: Sequence[GateCheck]) -> str:
    return "; ".join(f"{check.name} ({check.found})" for check in checks)


def run_refresh(settings: RefreshSettings) -> RefreshOutcome:
    """Run the flow here, with as many tasks at once as the settings say.

    Raises:
        OverlapError: Another refresh of the model is running, and the policy is to cancel.
    """
    try:
        outcome = refresh(settings)
    except CancelledRun as error:
        raise OverlapError(str(error)) from error
    return cast(RefreshOutcome, outcome)  # Prefect gives what is in the state
