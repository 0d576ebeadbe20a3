"""Compare interventions and control arms on the same prompts, seeds and texts.

Started by `eigenshift compare` or from the Prefect UI. Shares every stage with the refresh, so
what a refresh of the same settings has done is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prefect import flow

from eigenshift.evaluation.arms import AGAIN_ARM, BASE_ARM, PAPER_ARM, PATCHED_ARM, TUNED_ARM
from eigenshift.interventions import Need, PatchRequest, find_recipe
from eigenshift.interventions.unit_scaling import UNIT_SITES
from eigenshift.manifests import ArtifactReference
from eigenshift.reporting import ArmComparison
from eigenshift.settings import ComponentScore, RefreshSettings, Role
from eigenshift.trials import choose_for_confirmation
from flows import detection_stages, stages, trials
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.publication import publish_comparison
from flows.runners import run_tasks

logger = logging.getLogger("eigenshift.compare")


@flow(name="compare", flow_run_name="compare-{settings.model.model_id}", result_serializer="json")
def compare(settings: RefreshSettings) -> ArmComparison:
    """Judge all interventions alike.

    Args:
        settings: Everything the run reads; see docs/settings.md.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("compare", settings)
    with journal.recording(), run_tasks(settings.execution):
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        requests = _request_patches(settings, journal.artifacts.open(model).manifest.facts)
        dataset = settings.compare.unit_dataset or settings.sources_for(Role.labelled)[0].name
        units: list[ArtifactReference] = []
        if any(Need.units in find_recipe(item.intervention).needs for item in requests.values()):
            samples = sources.samples[Role.labelled][dataset]
            units = detection_stages.study_units(journal, model, dataset, samples)
        evidence = stages.gather_evidence(journal, sources, study, dataset=dataset, units=units)
        patches = stages.build_patches(journal, model, evidence, requests)
        patches |= _build_tuned(journal, model, study, evidence)
        arms = {
            BASE_ARM: stages.Arm(patch=None),
            AGAIN_ARM: stages.Arm(patch=None, stream="again"),
        } | {name: stages.Arm(patch=patch) for name, patch in patches.items()}
        evaluation = stages.evaluate_arms(journal, model, sources, arms)
        tabulated = stages.tabulate_arms(journal, evaluation, arms)
        artifact = journal.artifacts.open(tabulated)
        rows = journal.artifacts.open(evaluation).read_table("evaluations.parquet").to_pylist()
        comparison = ArmComparison(
            run_id=journal.record.run_id,
            store=journal.root,
            stages=journal.record.stages,
            arms=artifact.read_table("comparison.parquet").to_pylist(),
            evaluations=rows,
            table=artifact.locate("comparison.parquet").uri,
            figure=artifact.locate("chart.png").uri,
        )
    publish_comparison(comparison)
    return comparison


def _build_tuned(
    journal: RunJournal,
    model: ArtifactReference,
    study: stages.ComponentStudy,
    evidence: stages.EvidenceReferences,
) -> dict[str, ArtifactReference]:
    """The best trial of the screening, if one lowers the toxic tokens' probability in budget."""
    screening = trials.screen(journal, model, study, evidence)
    screened = journal.artifacts.open(screening.reference).read_table("trials.parquet")
    best = choose_for_confirmation(screened.to_pylist(), 1)
    if not best:
        logger.warning("%s left out: no trial of the search is within its budget", TUNED_ARM)
    points = dict(zip([TUNED_ARM], best, strict=False))
    return trials.build_trial_patches(journal, model, evidence, screening, points)


def _request_patches(
    settings: RefreshSettings, facts: Mapping[str, Any]
) -> dict[str, PatchRequest]:
    """Ours, the paper's own setting, and every intervention asked for that the model allows."""
    components = settings.components
    common = {
        "factor": components.factor,
        "seed": components.seed,
        "max_perplexity_increase": components.max_perplexity_increase,
    }
    n_paper = _count_paper_components(settings, facts["head"]["hidden"])
    requests = {
        PATCHED_ARM: PatchRequest(**common),
        PAPER_ARM: PatchRequest(
            **common | {"factor": 0.0}, n_components=n_paper, score=ComponentScore.abs_delta
        ),
    }
    has_units = any(site.value in facts["sites"] for site in UNIT_SITES)
    for name in settings.compare.interventions:
        if Need.units in find_recipe(name).needs and not has_units:
            logger.warning("%s left out: the model's MLPs have no units of their own", name)
            continue
        requests[name] = PatchRequest(**common, intervention=name)
    return requests


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
