"""Stages of the search, shared by `tune` and `compare`: screen, build patches, confirm."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from eigenshift.errors import NothingToDampError
from eigenshift.evaluation.arms import BASE_ARM
from eigenshift.interventions import PatchRequest
from eigenshift.manifests import ArtifactReference
from eigenshift.prompts import Part
from eigenshift.settings import ComponentScore
from eigenshift.trials import AUTOMATIC, TrialPoint
from flows import stages
from flows.journal import RunJournal
from tasks import components as component_tasks
from tasks import tuning
from tasks.generation import Arm
from tasks.patches import EvidenceReferences

logger = logging.getLogger("eigenshift.trials")


@dataclass(frozen=True)
class Screening:
    """The screened trials, and the component tables of the automatic choice by factor."""

    reference: ArtifactReference
    automatic: Mapping[float, ArtifactReference]


def screen(
    journal: RunJournal,
    model: ArtifactReference,
    study: stages.ComponentStudy,
    evidence: EvidenceReferences,
) -> Screening:
    """Measure the whole grid in closed form.

    Raises:
        NothingToDampError: The automatic choice is asked for and takes nothing for any factor.
    """
    settings = journal.settings
    automatic: dict[float, ArtifactReference] = {}
    if settings.components.n_components is None:
        automatic = _choose_automatically(journal, model, study, evidence)
    (screening,) = journal.collect(
        "screen_trials",
        [
            tuning.screen_trials.submit(
                settings.store,
                model,
                study.decomposition,
                study.states,
                study.components,
                automatic,
                list(evidence.neutral_texts),
                settings.model,
                settings.tune,
                settings.evaluation,
                settings.execution,
            )
        ],
    )
    return Screening(screening, automatic)


def _choose_automatically(
    journal: RunJournal,
    model: ArtifactReference,
    study: stages.ComponentStudy,
    evidence: EvidenceReferences,
) -> dict[float, ArtifactReference]:
    """Factor -> table of what the run's own rule takes within the search's budget.

    Raises:
        NothingToDampError: It takes nothing for any factor.
    """
    settings, budget = journal.settings, journal.settings.tune.max_perplexity_increase
    scoring = {
        factor: component_tasks.score_components.submit(
            settings.store,
            model,
            study.decomposition,
            study.states,
            list(evidence.neutral_texts),
            settings.model,
            settings.components.model_copy(
                update={"factor": factor, "max_perplexity_increase": budget}
            ),
            settings.evaluation,
            settings.execution,
        )
        for factor in settings.tune.factors
    }
    automatic: dict[float, ArtifactReference] = {}
    for factor, future in scoring.items():
        # The label tells this table from that of the run's own choice.
        label = f"factor={factor:g}"
        try:
            (automatic[factor],) = journal.collect("score_components", {label: future})
        except NothingToDampError:
            logger.warning(
                "automatic choice left out: %s tune.max_perplexity_increase=%g, no component "
                "helps within it",
                label,
                budget,
            )
    if not automatic:
        raise NothingToDampError(
            "tune.factors: expected at least one with which a component lowers the probability of "
            f"toxic tokens at a cost of at most {budget:.1%} perplexity, found none. Raise "
            "tune.max_perplexity_increase or add factors nearer to 1."
        )
    return automatic


def build_trial_patches(
    journal: RunJournal,
    model: ArtifactReference,
    evidence: EvidenceReferences,
    screening: Screening,
    points: Mapping[str, TrialPoint],
) -> dict[str, ArtifactReference]:
    """The patch of each named trial: that of a refresh with its settings."""
    patches: dict[str, ArtifactReference] = {}
    for name, point in points.items():
        if point.score == AUTOMATIC:
            table = screening.automatic[point.factor]
            read = evidence.model_copy(update={"components": table})
            request = PatchRequest(factor=point.factor)
        else:
            read = evidence
            request = PatchRequest(
                n_components=point.n_components,
                factor=point.factor,
                score=ComponentScore(point.score),
            )
        patches |= stages.build_patches(journal, model, read, {name: request})
    return patches


def confirm(
    journal: RunJournal,
    model: ArtifactReference,
    sources: stages.Sources,
    screening: Screening,
    patches: Mapping[str, ArtifactReference],
) -> ArtifactReference:
    """Generate with the chosen trials on the selection prompts, and name the best."""
    settings = journal.settings
    arms = {BASE_ARM: Arm(patch=None)} | {name: Arm(patch) for name, patch in patches.items()}
    generated = stages.generate(journal, model, sources.prompts, Part.selection, arms)
    (trials,) = journal.collect(
        "confirm_trials",
        [
            tuning.confirm_trials.submit(
                settings.store,
                screening.reference,
                journal.refer_to_files(sources.prompts, f"{Part.selection.value}-"),
                {name: found.continuations for name, found in generated.items()},
                {name: found.scores for name, found in generated.items()},
                settings.tune,
                settings.evaluation,
                settings.scorer,
            )
        ],
    )
    return trials
