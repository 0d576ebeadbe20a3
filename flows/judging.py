"""What the gate of a refresh asks for beside the comparison of arms.

Each function submits the tasks of one stage, as those of `stages.py`. What the answers mean is
`eigenshift/gate.py`'s.
"""

from __future__ import annotations

from eigenshift.manifests import ArtifactReference
from eigenshift.prompts import Part
from eigenshift.settings import ScorerKind
from flows import stages
from flows.journal import RunJournal
from tasks import evaluation


def measure_token_shifts(
    journal: RunJournal,
    model: ArtifactReference,
    study: stages.ComponentStudy,
    patch: ArtifactReference,
) -> ArtifactReference:
    """Which tokens a patch makes rarer; words of lexicons among the scorers count as insults."""
    settings = journal.settings
    scorers = (settings.scorer, *settings.further_scorers)
    (shifts,) = journal.collect(
        "measure_token_shifts",
        [
            evaluation.measure_token_shifts.submit(
                settings.store,
                model,
                patch,
                study.states,
                [scorer for scorer in scorers if scorer.kind is ScorerKind.lexicon],
                settings.model,
                settings.execution,
            )
        ],
    )
    return shifts


def draw_controls(
    journal: RunJournal,
    model: ArtifactReference,
    study: stages.ComponentStudy,
    patch: ArtifactReference,
) -> ArtifactReference:
    """How the patch compares with many random choices of components."""
    settings = journal.settings
    (drawn,) = journal.collect(
        "draw_controls",
        [
            evaluation.draw_controls.submit(
                settings.store,
                model,
                patch,
                study.decomposition,
                study.states,
                settings.components.seed,
                settings.gate.n_random_draws,
                settings.model,
                settings.execution,
            )
        ],
    )
    return drawn


def check_reload(
    journal: RunJournal, model: ArtifactReference, sources: stages.Sources, patch: ArtifactReference
) -> ArtifactReference:
    """Whether the exported model loads back as what was measured."""
    settings = journal.settings
    shards = journal.refer_to_files(sources.prompts, f"{Part.evaluation.value}-")
    (checked,) = journal.collect(
        "check_reload",
        [
            evaluation.check_reload.submit(
                settings.store, model, patch, shards[0], settings.model, settings.execution
            )
        ],
    )
    return checked
