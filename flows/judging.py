"""What the gate of a refresh asks for beside the comparison of arms.

Each function does one stage, as those of `stages.py`. What the answers mean is
`eigenshift/evaluation/gate.py`'s.
"""

from __future__ import annotations

from typing import Any

from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation import stages as evaluation
from eigenshift.patches.stages import HeadEvidence
from eigenshift.settings import Role, ScorerKind
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference
from eigenshift.toxicity.stages import CaseFile, Classifier
from flows.journal import RunJournal
from flows.stages import Arm, Sources, generate_long, list_files


def measure_token_shifts(
    journal: RunJournal, study: HeadEvidence, patch: ArtifactReference
) -> ArtifactReference:
    """Which tokens a patch makes rarer; words of lexicons among the scorers count as insults."""
    scorers = (journal.settings.scorer, *journal.settings.further_scorers)
    lexicons = [Classifier.of(item) for item in scorers if item.kind is ScorerKind.lexicon]
    inputs = evaluation.TokenShiftInputs(
        model=study.model,
        patch=patch,
        states=study.head_states,
        continuations=study.continuations,
        lexicons=tuple(lexicons),
    )
    return journal.run_one(evaluation.MEASURE_TOKEN_SHIFTS, inputs)


def draw_controls(
    journal: RunJournal, study: HeadEvidence, patch: ArtifactReference
) -> ArtifactReference:
    """How the patch compares with many random choices of components."""
    inputs = evaluation.DrawInputs(
        model=study.model,
        patch=patch,
        decomposition=study.decomposition,
        states=study.head_states,
        continuations=study.continuations,
    )
    return journal.run_one(evaluation.DRAW_CONTROLS, inputs)


def check_reload(
    journal: RunJournal, model: ArtifactReference, sources: Sources, patch: ArtifactReference
) -> ArtifactReference:
    """Whether the exported model loads back as what was measured."""
    prompts = journal.refer_to_files(sources.prompts, tables.EVALUATION_PROMPTS)[0]
    inputs = evaluation.ReloadInputs(model=model, patch=patch, prompts=prompts)
    return journal.run_one(evaluation.CHECK_RELOAD, inputs)


def confirm_at_length(
    journal: RunJournal,
    model: ArtifactReference,
    sources: Sources,
    patch: ArtifactReference,
) -> list[dict[str, Any]]:
    """Base and patch on long continuations of some evaluation prompts.

    Returns:
        `schemas.CONFIRMATIONS` rows; none where the settings ask for none.
    """
    settings = journal.settings
    if settings.generation.confirm_tokens is None:
        return []
    prompts = journal.refer_to_files(sources.prompts, tables.EVALUATION_PROMPTS)
    arms = {BASE_ARM: Arm(patch=None), journal.record.judged: Arm(patch=patch)}
    found = generate_long(journal, model, prompts, arms)
    inputs = evaluation.LongComparisonInputs(
        prompts=prompts,
        continuations=found.continuations,
        judged=evaluation.LongScores(scores=found.scores),
    )
    key = evaluation.LongComparisonKey.of(settings, arms=tuple(sorted(arms)))
    made = journal.run_one(evaluation.CONFIRM_AT_LENGTH, inputs, key)
    return list(journal.read(made, tables.CONFIRMATIONS).to_pylist())


def measure_scorers(journal: RunJournal, sources: Sources) -> list[dict[str, Any]]:
    """How well each scorer does on the run's labelled texts and on functional cases.

    Returns:
        `schemas.SCORER_QUALITY` rows, of the deciding scorer first; none where the settings ask for
        neither texts nor cases.
    """
    asked = journal.settings.scorer_quality
    if not asked.n_texts and asked.functional_cases is None:
        return []
    cases = None if asked.functional_cases is None else CaseFile(uri=asked.functional_cases)
    samples = list_files(journal, sources, Role.labelled)
    measuring = {}
    for scorer in (journal.settings.scorer, *journal.settings.further_scorers):
        named = evaluation.JudgedScorerKey.of_scorer(scorer)
        measuring[scorer.name] = journal.submit(
            evaluation.MEASURE_SCORERS,
            evaluation.QualityInputs(
                scorers=(Classifier.of(scorer),), samples=samples, cases=cases
            ),
            evaluation.QualityKey.of(journal.settings, scorers=(named,)),
            scorer.name,
        )
    made = journal.collect(evaluation.MEASURE_SCORERS, measuring)
    return [row for item in made for row in journal.read(item, tables.SCORER_QUALITY).to_pylist()]
