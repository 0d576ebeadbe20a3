"""The stages of a run, in order, shared by all flows; those of detection are `detection_stages.py`.

Each function submits the tasks of one or a few stages, waits for them through the journal and
returns references. What the stages do is in `eigenshift/`; how they are cached is in `tasks/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eigenshift.calibration import require_both_parts
from eigenshift.datasets import RECORDS_NAME, REJECTED_NAME, SOURCE_FILES_NAME, list_sources
from eigenshift.errors import ModelError, SettingsError
from eigenshift.evaluation.arms import BASE_ARM
from eigenshift.evaluation.fluency import allot_texts
from eigenshift.interventions import PatchRequest
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.models import ModelKind, explain_no_head
from eigenshift.prompts import Part
from eigenshift.scoring import require_scored
from eigenshift.settings import (
    Role,
    ScorerSettings,
    StateSource,
)
from flows.journal import RunJournal
from tasks import components as component_tasks
from tasks import evaluation as evaluation_tasks
from tasks import generation, ingestion
from tasks import model as model_tasks
from tasks import patches as patch_tasks
from tasks.generation import Arm
from tasks.patches import EvidenceReferences

SEARCHING_COMMANDS = ("tune", "compare")


@dataclass(frozen=True)
class Sources:
    """What ingestion made: the samples of each source by role, and the prompts."""

    samples: dict[Role, dict[str, ArtifactReference]]
    prompts: ArtifactReference


@dataclass(frozen=True)
class Generated:
    """Continuations and their scores, shard by shard in the same order."""

    continuations: list[ArtifactReference]
    scores: list[ArtifactReference]


@dataclass(frozen=True)
class ComponentStudy:
    """What the generation side found out about the head."""

    decomposition: ArtifactReference
    states: ArtifactReference
    components: ArtifactReference


def ingest(journal: RunJournal) -> Sources:
    """Read all sources and choose prompts.

    Raises:
        DatasetError: The neutral texts are all for calibration, or all for evaluation.
    """
    settings = journal.settings
    samples = ingest_samples(journal, tuple(Role))
    (prompts,) = journal.collect(
        "choose_prompts",
        [
            ingestion.choose_prompts.submit(
                settings.store, list(samples[Role.prompts].values()), settings.prompts
            )
        ],
    )
    sources = Sources(samples, prompts)
    require_both_parts(
        journal.artifacts.read_table(file) for file, _ in _list_neutral(journal, sources)
    )
    return sources


def ingest_samples(
    journal: RunJournal, roles: Sequence[Role]
) -> dict[Role, dict[str, ArtifactReference]]:
    """Read the sources with these roles; their samples by role and name."""
    settings = journal.settings
    sources = [source for source in settings.sources if source.effective_role in roles]
    files = [file for source in sources for file in list_sources(source)]
    records = journal.collect(
        "read_file",
        [ingestion.read_file.submit(settings.store, file, settings.ingestion) for file in files],
    )
    records_of: dict[str, list[ingestion.RecordTables]] = {source.name: [] for source in sources}
    for file, reference in zip(files, records, strict=True):
        tables = ingestion.RecordTables(
            records=journal.refer_to_file(reference, RECORDS_NAME),
            rejected_rows=journal.refer_to_file(reference, REJECTED_NAME),
            source_files=journal.refer_to_file(reference, SOURCE_FILES_NAME),
        )
        records_of[file.name].append(tables)
    references = journal.collect(
        "ingest_source",
        {
            source.name: ingestion.ingest_source.submit(
                settings.store, source, records_of[source.name], settings.ingestion
            )
            for source in sources
        },
    )
    found: dict[Role, dict[str, ArtifactReference]] = {role: {} for role in roles}
    for source, reference in zip(sources, references, strict=True):
        found[source.effective_role][source.name] = reference
    return found


def identify_model(journal: RunJournal, *, must_generate: bool = True) -> ArtifactReference:
    """Digest and describe the model.

    Raises:
        ModelError: It must generate text and is not a causal language model.
        SettingsError: More components are asked for than its head has, or than are decomposed.
    """
    settings = journal.settings
    (model,) = journal.collect(
        "identify_model",
        [model_tasks.identify_model.submit(settings.store, settings.model, settings.execution)],
    )
    facts = journal.artifacts.open(model).manifest.facts
    if must_generate and facts["kind"] != ModelKind.causal.name:
        raise ModelError(explain_no_head(settings.model.id, ModelKind[facts["kind"]]))
    if must_generate:
        _require_components(journal, facts["head"]["hidden"])
    journal.record.model_digest = facts["digest"]
    return model


def _require_components(journal: RunJournal, hidden: int) -> None:
    """Stop before a run does its work if it would ask for components that are not there."""
    settings = journal.settings
    asked = {"components.n_components": settings.components.n_components}
    if journal.record.command in SEARCHING_COMMANDS:
        asked["tune.n_components"] = max(settings.tune.n_components)
    n_available, remedy = hidden, f"The head of {settings.model.model_id} has no more. Lower it."
    n_decomposed = settings.components.n_decomposed
    if n_decomposed is not None and n_decomposed < hidden:
        n_available, remedy = n_decomposed, "Lower it, or raise components.n_decomposed."
    for name, count in asked.items():
        if count is not None and count > n_available:
            raise SettingsError(
                f"{name}: expected at most {n_available} components, found {count}. {remedy}"
            )


def generate(
    journal: RunJournal,
    model: ArtifactReference,
    prompts: ArtifactReference,
    part: Part,
    arms: Mapping[str, Arm],
) -> dict[str, Generated]:
    """Continue one part of the prompts with all arms and score the continuations."""
    settings = journal.settings
    continued = journal.collect_together(
        "generate_continuations",
        [
            generation.generate_continuations.submit(
                settings.store,
                shard,
                model,
                dict(arms),
                settings.model,
                settings.generation,
                settings.execution,
            )
            for shard in journal.refer_to_files(prompts, f"{part.value}-")
        ],
    )
    continuations = {name: [shard[name] for shard in continued] for name in arms}
    scores = _score(journal, continuations, settings.scorer)
    return {name: Generated(found, scores[name]) for name, found in continuations.items()}


def score_further(
    journal: RunJournal, scorer: ScorerSettings, generated: Mapping[str, Generated]
) -> evaluation_tasks.JudgedArms:
    """Score all arms' continuations with a scorer that decides nothing."""
    continuations = {name: found.continuations for name, found in generated.items()}
    scores = _score(journal, continuations, scorer, is_further=True)
    return evaluation_tasks.JudgedArms(
        scorer=scorer, scores={name: tuple(found) for name, found in scores.items()}
    )


def _score(
    journal: RunJournal,
    continuations: Mapping[str, list[ArtifactReference]],
    scorer: ScorerSettings,
    *,
    is_further: bool = False,
) -> dict[str, list[ArtifactReference]]:
    """Score the shards of all arms, those that several arms share once."""
    settings = journal.settings
    to_score = list(dict.fromkeys(item for found in continuations.values() for item in found))
    scores = journal.collect(
        "score_further" if is_further else "score_continuations",
        [
            generation.score_continuations.submit(
                settings.store,
                reference,
                scorer,
                settings.execution,
                "further_scores" if is_further else "scores",
            )
            for reference in to_score
        ],
    )
    score_of = dict(zip(to_score, scores, strict=True))
    return {name: [score_of[item] for item in found] for name, found in continuations.items()}


def study_components(
    journal: RunJournal, model: ArtifactReference, sources: Sources
) -> ComponentStudy:
    """From continuations of the selection prompts to scored components of the head."""
    settings = journal.settings
    generated = _provide_texts(journal, model, sources)
    positions = journal.collect(
        "locate_toxic_words",
        [
            generation.locate_toxic_words.submit(
                settings.store,
                continuations,
                scores,
                settings.model,
                settings.scorer,
                settings.components,
                settings.execution,
            )
            for continuations, scores in zip(generated.continuations, generated.scores, strict=True)
        ],
    )
    decomposing = model_tasks.decompose_head.submit(
        settings.store, model, settings.model, settings.components, settings.execution
    )
    (states,) = journal.collect(
        "collect_head_states",
        [
            component_tasks.collect_head_states.submit(
                settings.store,
                model,
                generated.continuations,
                generated.scores,
                positions,
                settings.model,
                settings.scorer,
                settings.components,
                settings.execution,
            )
        ],
    )
    (decomposition,) = journal.collect("decompose_head", [decomposing])
    (components,) = journal.collect(
        "score_components",
        [
            component_tasks.score_components.submit(
                settings.store,
                model,
                decomposition,
                states,
                [file for file, _ in _list_neutral(journal, sources)],
                settings.model,
                settings.components,
                settings.evaluation,
                settings.execution,
            )
        ],
    )
    return ComponentStudy(decomposition, states, components)


def _require_scored(journal: RunJournal, scores: Sequence[ArtifactReference]) -> None:
    """Stop before components are chosen from the few continuations that could be scored."""
    facts = [journal.artifacts.open(reference).manifest.facts for reference in scores]
    n_unscored = sum(found["n_unscored"] for found in facts)
    n_total = n_unscored + sum(found["n_scored"] for found in facts)
    max_share = journal.settings.scorer.max_unscored_share
    require_scored(n_unscored, n_total, max_share, "selection prompts")


def gather_evidence(
    journal: RunJournal,
    sources: Sources,
    study: ComponentStudy,
    *,
    dataset: str | None = None,
    units: Sequence[ArtifactReference] = (),
) -> EvidenceReferences:
    """All that interventions may read; each takes what it needs.

    Args:
        journal: The run.
        sources: Samples and prompts.
        study: Of the head's components.
        dataset: Whose labelled texts interventions inside the trunk read.
        units: Statistics of the units they scale.
    """
    labelled: list[FileReference] = []
    if dataset is not None:
        reference = sources.samples[Role.labelled][dataset]
        labelled = journal.refer_to_files(reference, "samples-")
    return EvidenceReferences(
        decomposition=study.decomposition,
        components=study.components,
        head_states=study.states,
        units=tuple(units),
        labelled_texts=tuple(labelled),
        neutral_texts=tuple(file for file, _ in _list_neutral(journal, sources)),
    )


def _provide_texts(journal: RunJournal, model: ArtifactReference, sources: Sources) -> Generated:
    """What states are taken from: continuations of the selection prompts, or labelled texts."""
    settings = journal.settings
    if settings.components.states_from is StateSource.generations:
        base = {BASE_ARM: Arm(patch=None)}
        generated = generate(journal, model, sources.prompts, Part.selection, base)[BASE_ARM]
        _require_scored(journal, generated.scores)
        return generated
    files = [
        file
        for reference in sources.samples[Role.labelled].values()
        for file in journal.refer_to_files(reference, "samples-")
    ]
    texts = journal.collect(
        "encode_labelled_text",
        [
            component_tasks.encode_labelled_text.submit(
                settings.store,
                files,
                model,
                settings.model,
                settings.components,
                settings.execution,
            )
        ],
    )
    return Generated(list(texts), list(texts))


def build_patches(
    journal: RunJournal,
    model: ArtifactReference,
    evidence: EvidenceReferences,
    requests: Mapping[str, PatchRequest],
) -> dict[str, ArtifactReference]:
    """Build the patch of each named arm."""
    settings = journal.settings
    references = journal.collect(
        "build_patch",
        {
            arm: patch_tasks.build_patch.submit(
                settings.store, request, model, evidence, settings.model, settings.execution
            )
            for arm, request in requests.items()
        },
    )
    return dict(zip(requests, references, strict=True))


def evaluate_arms(
    journal: RunJournal,
    model: ArtifactReference,
    sources: Sources,
    arms: Mapping[str, Arm],
    part: Part = Part.evaluation,
) -> ArtifactReference:
    """Generate, score and compare all arms on the same prompts, seeds and neutral texts."""
    settings = journal.settings
    generated = generate(journal, model, sources.prompts, part, arms)
    fluency = measure_fluency(
        journal, model, sources, {name: arm.patch for name, arm in arms.items()}
    )
    judged = evaluation_tasks.JudgedArms(
        scorer=settings.scorer,
        scores={name: tuple(found.scores) for name, found in generated.items()},
    )
    further = [score_further(journal, scorer, generated) for scorer in settings.further_scorers]
    continuations = {name: found.continuations for name, found in generated.items()}
    (compared,) = journal.collect(
        "compare_arms",
        [
            evaluation_tasks.compare_arms.submit(
                settings.store,
                journal.refer_to_files(sources.prompts, f"{part.value}-"),
                continuations,
                judged,
                further,
                fluency,
                settings.evaluation,
            )
        ],
    )
    if further:
        journal.collect(
            "compare_scorers",
            [
                evaluation_tasks.compare_scorers.submit(
                    settings.store, continuations, [judged, *further]
                )
            ],
        )
    return compared


def tabulate_arms(
    journal: RunJournal, evaluation: ArtifactReference, arms: Mapping[str, Arm]
) -> ArtifactReference:
    """One row per arm, with what it took to build it, and one plot."""
    (table,) = journal.collect(
        "tabulate_arms",
        [
            evaluation_tasks.tabulate_arms.submit(
                journal.settings.store,
                evaluation,
                {name: arm.patch for name, arm in arms.items()},
            )
        ],
    )
    return table


def measure_fluency(
    journal: RunJournal,
    model: ArtifactReference,
    sources: Sources,
    patches: Mapping[str, ArtifactReference | None],
) -> Sequence[ArtifactReference]:
    """Measure all arms on the neutral texts, shard by shard."""
    settings = journal.settings
    files = _list_neutral(journal, sources)
    n_texts = allot_texts([rows for _, rows in files], settings.evaluation.max_texts)
    return journal.collect(
        "measure_fluency",
        [
            evaluation_tasks.measure_fluency.submit(
                settings.store,
                file,
                model,
                dict(patches),
                count,
                settings.model,
                settings.evaluation,
                settings.execution,
            )
            for (file, _), count in zip(files, n_texts, strict=True)
            if count
        ],
    )


def _list_neutral(journal: RunJournal, sources: Sources) -> list[tuple[FileReference, int]]:
    """Shards of neutral samples with their numbers of rows."""
    return [
        (file, file.rows or 0)
        for reference in sources.samples[Role.neutral].values()
        for file in journal.refer_to_files(reference, "samples-")
    ]
