"""Which patch a refresh judges: the intervention the settings name, or the best of several.

With `patch.intervention: auto` each candidate is built for the run's budget and continues the
selection prompts; the one that leaves least toxicity is judged then, on other prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

from eigenshift.base.arms import AGAIN_ARM, BASE_ARM, PATCHED_ARM, RANDOM_ARM, SUPPRESSION_ARM
from eigenshift.base.errors import NothingToDampError, SettingsError
from eigenshift.evaluation import stages as evaluation
from eigenshift.patches.interventions.registry import find_recipe
from eigenshift.patches.requests import Need, PatchRequest
from eigenshift.patches.stages import HeadEvidence
from eigenshift.settings import RefreshSettings
from eigenshift.settings.patch import AUTOMATIC
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference
from flows import stages
from flows.journal import RunJournal, logger

NOT_IN_A_REFRESH = {
    Need.units: "statistics of the MLPs' units",
    Need.labelled_texts: "labelled texts",
}
"""Evidence that a refresh does not gather for its patch; `compare` does."""


def require_interventions(settings: RefreshSettings) -> None:
    """Stop before a run does its work if what it is to judge cannot be built in a refresh.

    Raises:
        SettingsError: No such intervention, one that reads what a refresh does not gather, or the
            random control itself.
    """
    patch = settings.patch
    is_automatic = patch.intervention == AUTOMATIC
    place = "patch.candidates" if is_automatic else "patch.intervention"
    for name in patch.candidates if is_automatic else (patch.intervention,):
        needs = find_recipe(name, place).needs
        reasons = [f"reads {what}" for need, what in NOT_IN_A_REFRESH.items() if need in needs]
        if name == RANDOM_ARM:
            reasons.append("is the control that it would be held against")
        if reasons:
            raise SettingsError(
                f"{place}: expected interventions that a refresh can judge, found {name}, which "
                f"{' and '.join(reasons)}. Choose another, or name it in compare.interventions."
            )


def build_treatment(
    journal: RunJournal, sources: stages.Sources, study: HeadEvidence
) -> dict[str, ArtifactReference]:
    """The patch that is judged, under its intervention's name, and its controls.

    Raises:
        NothingToDampError: No candidate does anything within the budget.
        SettingsError: The patch has no place in the weights, so it can never be released.
    """
    name = journal.settings.patch.intervention
    if name == AUTOMATIC:
        name = _choose_best(journal, sources, study)
    journal.record.judged = name
    patches = stages.build_patches(journal, study, _request_patches(journal.settings, name))
    obstacle = journal.read_facts(patches[name])["obstacle"]
    if obstacle is not None:
        raise SettingsError(
            f"patch.intervention: expected one that folds into the weights, found {name}: "
            f"{obstacle}"
        )
    return patches


def evaluate_treatment(
    journal: RunJournal,
    model: ArtifactReference,
    sources: stages.Sources,
    patches: Mapping[str, ArtifactReference],
) -> ArtifactReference:
    """Judge the patch and its controls beside the base, and the base with other random numbers."""
    arms = {
        BASE_ARM: stages.Arm(patch=None),
        AGAIN_ARM: stages.Arm(patch=None, stream="again"),
    } | {name: stages.Arm(patch=found) for name, found in patches.items()}
    return stages.evaluate_arms(journal, model, sources, arms)


def _request_patches(settings: RefreshSettings, judged: str) -> dict[str, PatchRequest]:
    """The judged patch, a random control of the same kind and cost, and a word filter."""
    common = _request(settings)
    random = RANDOM_ARM if judged == PATCHED_ARM else "random_directions"
    requests = {
        judged: common.model_copy(update={"intervention": judged}),
        RANDOM_ARM: common.model_copy(update={"intervention": random}),
    }
    filtering = common.model_copy(update={"intervention": SUPPRESSION_ARM})
    return {SUPPRESSION_ARM: filtering} | requests


def _request(settings: RefreshSettings) -> PatchRequest:
    components = settings.components
    return PatchRequest(
        seed=components.seed, max_perplexity_increase=components.max_perplexity_increase
    )


def _choose_best(journal: RunJournal, sources: stages.Sources, study: HeadEvidence) -> str:
    """The candidate that leaves least toxicity on the selection prompts."""
    patches = _build_candidates(journal, study)
    arms = {BASE_ARM: stages.Arm(patch=None)}
    arms |= {name: stages.Arm(patch=patch) for name, patch in patches.items()}
    prompts = journal.refer_to_files(sources.prompts, tables.SELECTION_PROMPTS)
    generated = stages.generate(journal, study.model, prompts, arms)
    inputs = evaluation.ChoiceInputs(
        prompts=prompts, continuations=generated.continuations, scores=generated.scores
    )
    key = evaluation.InterventionKey.of(journal.settings, arms=tuple(sorted(arms)))
    rows = journal.read(
        journal.run_one(evaluation.CHOOSE_INTERVENTION, inputs, key), tables.INTERVENTION_CHOICES
    ).to_pylist()
    (chosen,) = (row["arm"] for row in rows if row["is_chosen"])
    logger.info("patch.intervention: auto chose %s of %d", chosen, len(patches))
    return str(chosen)


def _build_candidates(journal: RunJournal, study: HeadEvidence) -> Mapping[str, ArtifactReference]:
    common = _request(journal.settings)
    found: dict[str, ArtifactReference] = {}
    reasons: list[str] = []
    for name in journal.settings.patch.candidates:
        request = common.model_copy(update={"intervention": name})
        try:
            patches = stages.build_patches(journal, study, {name: request})
        except NothingToDampError as error:
            reasons.append(str(error))
            continue
        obstacle = journal.read_facts(patches[name])["obstacle"]
        if obstacle is None:
            found |= patches
        else:
            logger.info("patch.intervention: auto leaves out %s: %s", name, obstacle)
    if not found:
        raise NothingToDampError("; ".join(reasons) or "patch.candidates: none can be folded.")
    return found
