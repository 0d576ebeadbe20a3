"""Compare interventions and control arms on the same prompts, seeds and texts.

Started by `eigenshift compare` or from the Prefect UI. Shares every stage with the refresh, so
what a refresh of the same settings has done is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prefect import flow

from eigenshift.base.arms import (
    AGAIN_ARM,
    BASE_ARM,
    PAPER_ARM,
    PATCHED_ARM,
    TUNED_ARM,
    join_arm,
)
from eigenshift.base.errors import NothingToDampError
from eigenshift.evaluation.stages import (
    CHART_NAME,
    POINTS_CHART_NAME,
    TABULATE_ARMS,
    TabulationInputs,
    TabulationKey,
)
from eigenshift.evaluation.trials import choose_for_confirmation
from eigenshift.patches.interventions.registry import find_recipe
from eigenshift.patches.requests import UNIT_SITES, Need, PatchRequest
from eigenshift.patches.stages import HeadEvidence
from eigenshift.readiness.preflight import require_inputs
from eigenshift.reporting.outcomes import ArmComparison
from eigenshift.settings import ComponentScore, RefreshSettings, Role
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference
from flows import benchmarking, detection_stages, judging, stages, trials
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.publication import publish_comparison
from flows.run_labels import name_run
from flows.runners import run_tasks

logger = logging.getLogger("eigenshift.compare")


@flow(name="compare", flow_run_name=name_run, result_serializer="json")
def compare(settings: RefreshSettings) -> ArmComparison:
    """Judge all interventions alike.

    Args:
        settings: Everything the run reads; see docs/settings.md.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("compare", settings)
    with journal.recording(), run_tasks(settings.execution):
        for name in settings.compare.interventions:
            find_recipe(name, "compare.interventions")
        require_inputs(settings)
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        has_selected = bool(journal.read_facts(study.components)["selected"])
        facts = journal.read_facts(model)
        requests = _request_patches(settings, facts, has_selected=has_selected)
        dataset = settings.compare.unit_dataset or settings.sources_for(Role.labelled)[0].name
        samples = sources.samples[Role.labelled][dataset]
        units: tuple[ArtifactReference, ...] = ()
        if any(Need.units in find_recipe(item.intervention).needs for item in requests.values()):
            units = detection_stages.study_units(journal, model, dataset, samples)
        texts = journal.refer_to_files(samples, tables.SAMPLES)
        evidence = study.model_copy(update={"labelled_texts": texts, "units": units})
        if settings.patch.intervention in requests:
            journal.record.judged = settings.patch.intervention
        patches = stages.build_patches(journal, evidence, requests)
        try:
            patches |= _build_tuned(journal, study, sources)
        except NothingToDampError as error:
            logger.warning("%s left out: %s", TUNED_ARM, error)
        arms = {
            BASE_ARM: stages.Arm(patch=None),
            AGAIN_ARM: stages.Arm(patch=None, stream="again"),
        } | {name: stages.Arm(patch=patch) for name, patch in patches.items()}
        evaluation = stages.evaluate_arms(journal, model, sources, arms)
        artifact = journal.artifacts.open(_tabulate_arms(journal, evaluation, arms))
        rows = journal.read(evaluation, tables.EVALUATIONS).to_pylist()
        answered = benchmarking.measure_benchmarks(journal, model, {BASE_ARM: None, **patches})
        quality = judging.measure_scorers(journal, sources)
        comparison = ArmComparison(
            run_id=journal.record.run_id,
            store=journal.root,
            stages=journal.record.stages,
            arms=artifact.read_table(tables.COMPARISONS.file).to_pylist(),
            evaluations=rows,
            benchmarks=answered,
            caveats=journal.record.caveats,
            table=artifact.locate(tables.COMPARISONS.file).uri,
            figure=artifact.locate(CHART_NAME).uri,
            points_figure=artifact.locate(POINTS_CHART_NAME).uri
            if POINTS_CHART_NAME in artifact.file_names
            else None,
            quality=quality,
        )
    publish_comparison(comparison)
    return comparison


def _tabulate_arms(
    journal: RunJournal, compared: ArtifactReference, arms: Mapping[str, stages.Arm]
) -> ArtifactReference:
    """One row per arm, with what it took to build it, and its plots."""
    patches = {name: arm.patch for name, arm in arms.items()}
    patched = tuple(name for name, patch in patches.items() if patch is not None)
    inputs = TabulationInputs(evaluation=compared, patches=patches)
    key = TabulationKey(arms=tuple(arms), patched=patched)
    return journal.run_one(TABULATE_ARMS, inputs, key)


def _build_tuned(
    journal: RunJournal, study: HeadEvidence, sources: stages.Sources
) -> dict[str, ArtifactReference]:
    """The best trial of the screening, if one lowers the toxic tokens' probability in budget."""
    screening = trials.screen(journal, study, sources)
    screened = journal.read(screening.reference, tables.TRIALS)
    best = choose_for_confirmation(screened.to_pylist(), 1)
    if not best:
        logger.warning("%s left out: no trial of the search is within its budget", TUNED_ARM)
    points = dict(zip([TUNED_ARM], best, strict=False))
    return trials.build_trial_patches(journal, study, screening, points)


def _request_patches(
    settings: RefreshSettings, facts: Mapping[str, Any], *, has_selected: bool
) -> dict[str, PatchRequest]:
    """Ours, the paper's own setting, and every intervention asked for that the model allows."""
    components = settings.components
    budget = components.max_perplexity_increase
    common = PatchRequest(seed=components.seed, max_perplexity_increase=budget)
    n_paper = _count_paper_components(settings, facts["head"]["hidden"])
    paper = {"factor": 0.0, "n_components": n_paper, "score": ComponentScore.abs_delta}
    requests = {PAPER_ARM: common.model_copy(update=paper)}
    if has_selected:
        requests[PATCHED_ARM] = common
    else:
        logger.warning("%s and its controls left out: no component is selected", PATCHED_ARM)
    has_units = any(site.value in facts["sites"] for site in UNIT_SITES)
    for name in settings.compare.interventions:
        needs = find_recipe(name).needs
        if Need.units in needs and not has_units:
            logger.warning("%s left out: the model's MLPs have no units of their own", name)
            continue
        if Need.components in needs and not has_selected:
            continue
        requests[name] = common.model_copy(update={"intervention": name})
        # Those about components take their factors from the component table of one budget.
        if Need.components not in needs:
            requests |= _request_further_points(settings, requests[name])
    return requests


def _request_further_points(
    settings: RefreshSettings, request: PatchRequest
) -> dict[str, PatchRequest]:
    """The same intervention for other budgets, and once at a KL that all arms share."""
    name, compared = request.intervention, settings.compare
    found = {
        join_arm(name, f"{budget:.3g}"): request.model_copy(
            update={"max_perplexity_increase": budget}
        )
        for budget in compared.budgets
        if budget != request.max_perplexity_increase
    }
    if compared.divergence is not None:
        at_divergence = request.model_copy(update={"divergence": compared.divergence})
        found[join_arm(name, f"kl{compared.divergence:g}")] = at_divergence
    return found


def _count_paper_components(settings: RefreshSettings, hidden: int) -> int:
    """The paper's share of all components, or all that are decomposed."""
    wanted = max(1, round(settings.compare.paper_share * hidden))
    n_decomposed = settings.components.n_decomposed or wanted
    if wanted > n_decomposed:
        logger.warning(
            "%s: the paper's share is %d components, only %d are decomposed "
            "(components.n_decomposed); it damps these",
            PAPER_ARM,
            wanted,
            n_decomposed,
        )
    return min(wanted, n_decomposed)


def run_compare(settings: RefreshSettings) -> ArmComparison:
    """Run the flow here."""
    return compare(settings)
