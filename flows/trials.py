"""Stages of the search, shared by `tune` and `compare`: screen, foretell, build, confirm."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import NothingToDampError
from eigenshift.components import stages as components
from eigenshift.evaluation import stages as evaluation
from eigenshift.evaluation.trials import AUTOMATIC, TrialPoint
from eigenshift.patches.requests import PatchRequest
from eigenshift.patches.stages import HeadEvidence
from eigenshift.settings import ComponentScore
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference
from flows import stages
from flows.journal import RunJournal

logger = logging.getLogger("eigenshift.trials")


@dataclass(frozen=True)
class Screening:
    """The screened trials of a model, and the automatic choice's component tables by factor."""

    reference: ArtifactReference
    automatic: Mapping[float, ArtifactReference]
    model: ArtifactReference


def screen(journal: RunJournal, study: HeadEvidence, sources: stages.Sources) -> Screening:
    """Measure the whole grid in closed form, and foretell the toxicity of the most promising.

    Raises:
        NothingToDampError: The automatic choice is asked for and takes nothing for any factor.
    """
    automatic: dict[float, ArtifactReference] = {}
    if journal.settings.components.n_components is None:
        automatic = _choose_automatically(journal, study)
    inputs = evaluation.ScreeningInputs(
        model=study.model,
        decomposition=study.decomposition,
        states=study.head_states,
        components=study.components,
        automatic=automatic,
        neutral=study.neutral_texts,
        harmless=study.harmless_texts,
    )
    key = evaluation.ScreeningKey.of(journal.settings, automatic_factors=tuple(automatic))
    screened = journal.run_one(evaluation.SCREEN_TRIALS, inputs, key)
    if journal.settings.tune.n_predicted:
        screened = _predict(journal, study, sources, screened)
    return Screening(screened, automatic, study.model)


def _predict(
    journal: RunJournal,
    study: HeadEvidence,
    sources: stages.Sources,
    screened: ArtifactReference,
) -> ArtifactReference:
    """The same trials, with what the base's continuations of the selection prompts foretell."""
    prompts = journal.refer_to_files(sources.prompts, tables.SELECTION_PROMPTS)
    said = stages.generate(journal, study.model, prompts, {BASE_ARM: stages.Arm(patch=None)})
    further = stages.score_further(journal, said.continuations)
    inputs = evaluation.PredictionInputs(
        model=study.model,
        decomposition=study.decomposition,
        screening=screened,
        prompts=prompts,
        continuations=said.continuations[BASE_ARM],
        scores=said.scores[BASE_ARM],
        further=tuple(evaluation.FurtherBaseScores(scores=scores[BASE_ARM]) for scores in further),
    )
    return journal.run_one(evaluation.PREDICT_TRIALS, inputs)


def _choose_automatically(
    journal: RunJournal, study: HeadEvidence
) -> dict[float, ArtifactReference]:
    """Least factor -> table of what the run's own rule takes within the search's budget.

    Raises:
        NothingToDampError: It takes nothing for any factor.
    """
    settings, budget = journal.settings, journal.settings.tune.max_perplexity_increase
    inputs = components.ComponentInputs(
        model=study.model,
        decomposition=study.decomposition,
        states=study.head_states,
        neutral=study.neutral_texts,
        harmless=study.harmless_texts,
    )
    scoring = {}
    for factor in settings.tune.factors:
        choice = components.ChoiceKey.of(
            settings, min_factor=factor, max_perplexity_increase=budget
        )
        key = components.ComponentKey.of(settings, components=choice)
        scoring[factor] = journal.submit(
            components.SCORE_COMPONENTS, inputs, key, f"factor {factor:g}"
        )
    automatic: dict[float, ArtifactReference] = {}
    for factor, future in scoring.items():
        # The label tells this table from that of the run's own choice.
        label = f"factor={factor:g}"
        (table,) = journal.collect(components.SCORE_COMPONENTS, {label: future})
        if journal.read_facts(table)["selected"]:
            automatic[factor] = table
        else:
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
    study: HeadEvidence,
    screening: Screening,
    points: Mapping[str, TrialPoint],
) -> dict[str, ArtifactReference]:
    """The patch of each named trial: that of a refresh with its settings."""
    patches: dict[str, ArtifactReference] = {}
    for name, point in points.items():
        if point.score == AUTOMATIC:
            table = screening.automatic[point.factor]
            read, request = study.model_copy(update={"components": table}), PatchRequest()
        else:
            read = study
            request = PatchRequest(
                n_components=point.n_components,
                factor=point.factor,
                score=ComponentScore(point.score),
            )
        patches |= stages.build_patches(journal, read, {name: request})
    return patches


def confirm(
    journal: RunJournal,
    sources: stages.Sources,
    screening: Screening,
    patches: Mapping[str, ArtifactReference],
) -> ArtifactReference:
    """Generate with the chosen trials on the selection prompts, and name the best."""
    arms = {BASE_ARM: stages.Arm(patch=None)}
    arms |= {name: stages.Arm(patch) for name, patch in patches.items()}
    prompts = journal.refer_to_files(sources.prompts, tables.SELECTION_PROMPTS)
    generated = stages.generate(journal, screening.model, prompts, arms)
    inputs = evaluation.ConfirmationInputs(
        screening=screening.reference,
        prompts=prompts,
        continuations=generated.continuations,
        scores=generated.scores,
    )
    key = evaluation.ConfirmationKey.of(journal.settings, arms=tuple(sorted(arms)))
    return journal.run_one(evaluation.CONFIRM_TRIALS, inputs, key)
