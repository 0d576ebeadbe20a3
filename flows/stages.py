"""The stages of a run, in order, shared by all flows; those of detection are `detection_stages.py`.

Each function says for one or a few stages what they read and by which settings, and has the journal
do them. What a stage is stands in its declaration (`eigenshift/pipeline.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.components import stages as components
from eigenshift.components.text_halves import (
    CALIBRATION_SHARE,
    require_both_parts,
    split_neutral,
)
from eigenshift.datasets import stages as datasets
from eigenshift.datasets.reading import list_sources
from eigenshift.evaluation import stages as evaluation
from eigenshift.evaluation.evidence import Evidence, find_thin_evidence
from eigenshift.evaluation.text_allotment import allot_texts
from eigenshift.generation import stages as generation
from eigenshift.generation.engines import require_backend
from eigenshift.model import stages as model_stages
from eigenshift.model.kinds import ModelKind, explain_no_head
from eigenshift.patches import stages as patch_stages
from eigenshift.patches.interventions.registry import list_needs
from eigenshift.patches.requests import PatchRequest
from eigenshift.patches.stages import FISHER_PLACES
from eigenshift.settings import Backend, RefreshSettings, Role, ScorerSettings, StateSource
from eigenshift.stages import tables
from eigenshift.stages.running import Piece
from eigenshift.stages.stage import I, K, Stage
from eigenshift.store.manifests import ArtifactReference, FileReference
from eigenshift.toxicity import stages as toxicity
from eigenshift.toxicity.unscored import require_scored_shards
from flows.journal import RunJournal, logger

SEARCHING_COMMANDS = ("tune", "compare")
S = TypeVar("S", bound=toxicity.ScoringInputs)
Shards = Mapping[str, tuple[ArtifactReference, ...]]
"""Arm -> artifacts, shard by shard."""


@dataclass(frozen=True)
class Arm:
    """One thing to compare: a patch (None: the base) and a stream of random numbers."""

    patch: ArtifactReference | None
    stream: str = "main"


@dataclass(frozen=True)
class Sources:
    """What ingestion made: the samples of each source by role, and the prompts."""

    samples: dict[Role, dict[str, ArtifactReference]]
    prompts: ArtifactReference


@dataclass(frozen=True)
class Generated:
    """Continuations of all arms and their scores, in the same order."""

    continuations: Shards
    scores: Shards


def ingest(journal: RunJournal) -> Sources:
    """Read all sources and choose prompts.

    Raises:
        DatasetError: The neutral texts are all for calibration, or all for evaluation.
    """
    samples = ingest_samples(journal, tuple(Role))
    inputs = generation.PromptInputs(samples=tuple(samples[Role.prompts].values()))
    sources = Sources(samples, journal.run_one(generation.CHOOSE_PROMPTS, inputs))
    neutral = list_files(journal, sources, Role.neutral)
    require_both_parts(journal.artifacts.read_table(file) for file in neutral)
    _note_thin_evidence(journal, sources, sum(file.rows or 0 for file in neutral))
    return sources


def _note_thin_evidence(journal: RunJournal, sources: Sources, n_neutral: int) -> None:
    """Say, before any work of hours, what is too small for what it is asked to decide."""
    settings = journal.settings
    evidence = Evidence(
        n_prompts=journal.read_facts(sources.prompts)["n_evaluation"],
        n_continuations=settings.generation.n_samples,
        n_budget_texts=n_neutral // CALIBRATION_SHARE,
        budget=settings.components.max_perplexity_increase,
        confidence=settings.evaluation.confidence,
    )
    for caveat in find_thin_evidence(evidence):
        logger.warning("%s", caveat)
        journal.record.caveats.append(caveat)


def ingest_samples(
    journal: RunJournal, roles: Sequence[Role]
) -> dict[Role, dict[str, ArtifactReference]]:
    """Read the sources with these roles; their samples by role and name."""
    settings = journal.settings
    sources = [source for source in settings.sources if source.effective_role in roles]
    reading = [
        (
            datasets.ReadingInputs(content=datasets.SourceContent(source=file)),
            datasets.ReadingKey.of(settings, source=file),
        )
        for source in sources
        for file in list_sources(source)
    ]
    records: dict[str, list[datasets.RecordFiles]] = {source.name: [] for source in sources}
    made = journal.run_each(datasets.READ_FILE, reading)
    for (_, key), reference in zip(reading, made, strict=True):
        found = datasets.RecordFiles.choose(journal.list_files(reference))
        records[key.source.name].append(found)
    ingesting = {
        name: journal.submit(
            datasets.INGEST_SOURCE,
            datasets.IngestionInputs(records=tuple(files)),
            datasets.IngestionKey.of(settings, source=name),
            name,
        )
        for name, files in records.items()
    }
    references = journal.collect(datasets.INGEST_SOURCE, ingesting)
    by_role: dict[Role, dict[str, ArtifactReference]] = {role: {} for role in roles}
    for source, reference in zip(sources, references, strict=True):
        by_role[source.effective_role][source.name] = reference
    return by_role


def list_files(journal: RunJournal, sources: Sources, role: Role) -> tuple[FileReference, ...]:
    """Shards of all samples of a role."""
    samples = sources.samples[role].values()
    shards = (journal.refer_to_files(reference, tables.SAMPLES) for reference in samples)
    return tuple(file for files in shards for file in files)


def identify_model(journal: RunJournal, *, must_generate: bool = True) -> ArtifactReference:
    """Digest and describe the model.

    Raises:
        ModelError: It must generate text and is not a causal language model.
        SettingsError: More components are asked for than its head has, or than are decomposed; or
            what is to generate is not installed here, where the work is done.
    """
    settings = journal.settings
    if must_generate and settings.execution.cluster_address is None:
        require_backend(settings.generation.backend)
    inputs = model_stages.IdentityInputs(weights=model_stages.Weights(model=settings.model))
    model = journal.run_one(
        model_stages.IDENTIFY_MODEL, inputs, model_stages.IdentityKey.of_model(settings)
    )
    facts = journal.read_facts(model)
    if must_generate:
        if facts["kind"] != ModelKind.causal.name:
            raise ModelError(explain_no_head(settings.model.id, ModelKind[facts["kind"]]))
        searches = journal.record.command in SEARCHING_COMMANDS
        _require_components(settings, facts["head"]["hidden"], searches=searches)
    journal.record.model_digest = facts["digest"]
    return model


def _require_components(settings: RefreshSettings, hidden: int, *, searches: bool) -> None:
    """Stop before a run does its work if it would ask for components that are not there.

    Args:
        settings: Of the run.
        hidden: Width of the head: so many components it has.
        searches: Whether the run searches a grid (`settings.tune`).

    Raises:
        SettingsError: More are asked for than there are, or than are decomposed.
    """
    asked = {"components.n_components": settings.components.n_components}
    if searches:
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
    prompts: Sequence[FileReference],
    arms: Mapping[str, Arm],
) -> Generated:
    """Continue prompts with all arms and score the continuations."""
    settings = journal.settings

    def order(shard: FileReference, arm: Arm) -> generation.ArmPiece:
        inputs = generation.ContinuationInputs(model=model, prompts=shard, patch=arm.patch)
        return Piece(inputs, generation.ContinuationKey.of(settings, stream=arm.stream))

    orders = {name: [order(shard, arm) for shard in prompts] for name, arm in arms.items()}
    found = _continue(journal, generation.GENERATE_CONTINUATIONS, orders, arms)
    key = toxicity.ScoringKey.of(settings)
    scores = _score(journal, toxicity.SCORE_CONTINUATIONS, key, settings.scorer, of=found)
    return Generated(found, scores)


def generate_long(
    journal: RunJournal,
    model: ArtifactReference,
    prompts: Sequence[FileReference],
    arms: Mapping[str, Arm],
) -> Generated:
    """Continue some prompts of each shard at length with all arms, and score the continuations."""
    settings = journal.settings
    n_rows = [shard.rows or 0 for shard in prompts]
    shares = allot_texts(n_rows, settings.generation.confirm_prompts, lambda: n_rows)

    def order(shard: FileReference, n_prompts: int, arm: Arm) -> generation.LongArmPiece:
        inputs = generation.ContinuationInputs(model=model, prompts=shard, patch=arm.patch)
        key = generation.LongContinuationKey.of(settings, stream=arm.stream, n_prompts=n_prompts)
        return Piece(inputs, key)

    orders = {
        name: [
            order(shard, share, arm) for shard, share in zip(prompts, shares, strict=True) if share
        ]
        for name, arm in arms.items()
    }
    found = _continue(journal, generation.GENERATE_LONG, orders, arms)
    key = toxicity.ScoringKey.of(settings)
    scores = _score(journal, toxicity.SCORE_LONG, key, settings.scorer, of=found)
    return Generated(found, scores)


def _continue(
    journal: RunJournal,
    stage: Stage[I, K],
    orders: Mapping[str, Sequence[Piece[I, K]]],
    arms: Mapping[str, Arm],
) -> Shards:
    """Make all arms' continuations, shard by shard.

    Our own loop does all arms of a shard in one pass, which share the trunk; an engine all shards
    of a patch, so that it is started once for each.
    """
    if journal.settings.generation.backend is Backend.transformers:
        shards = zip(*orders.values(), strict=True)
        made = journal.run_together(
            stage, (dict(zip(orders, shard, strict=True)) for shard in shards)
        )
        return {name: tuple(shard[name] for shard in made) for name in arms}
    arms_of_patch: dict[ArtifactReference | None, list[str]] = {}
    for name, arm in arms.items():
        arms_of_patch.setdefault(arm.patch, []).append(name)
    passes = [
        {f"{name} {place}": piece for name in names for place, piece in enumerate(orders[name])}
        for names in arms_of_patch.values()
    ]
    together: dict[str, ArtifactReference] = {}
    for of_patch in journal.run_together(stage, passes):
        together |= of_patch
    return {
        name: tuple(together[f"{name} {place}"] for place in range(len(pieces)))
        for name, pieces in orders.items()
    }


def _score(
    journal: RunJournal,
    stage: Stage[S, K],
    key: K,
    scorer: ScorerSettings,
    *,
    of: Shards,
) -> Shards:
    """Score the shards of all arms, those that several arms share once."""
    classifier = toxicity.Classifier.of(scorer)
    different = list(dict.fromkeys(item for found in of.values() for item in found))
    inputs = (stage.inputs(scorer=classifier, continuations=item) for item in different)
    score_of = dict(zip(different, journal.run(stage, inputs, key), strict=True))
    return {name: tuple(map(score_of.__getitem__, found)) for name, found in of.items()}


def study_components(
    journal: RunJournal, model: ArtifactReference, sources: Sources
) -> patch_stages.HeadEvidence:
    """From continuations of the selection prompts to scored components of the head.

    Returns:
        All that interventions on the head may read; each takes what it needs.
    """
    texts, scores = _provide_texts(journal, model, sources)
    finder = toxicity.PositionFinder.of(journal.settings)
    scored = (
        toxicity.PositionInputs(finder=finder, continuations=text, scores=score)
        for text, score in zip(texts, scores, strict=True)
    )
    positions = journal.run(toxicity.LOCATE_TOXIC_WORDS, scored)
    head = components.DecompositionInputs(model=model)
    decomposing = journal.submit(components.DECOMPOSE_HEAD, head)
    located = components.HeadStateInputs(
        model=model, continuations=texts, scores=scores, positions=tuple(positions)
    )
    states = journal.run_one(components.COLLECT_HEAD_STATES, located)
    (decomposition,) = journal.collect(components.DECOMPOSE_HEAD, [decomposing])
    neutral = list_files(journal, sources, Role.neutral)
    harmless_key = components.HarmlessKey.of(journal.settings, for_calibration=True)
    harmless = choose_harmless_texts(journal, model, sources, texts, scores, harmless_key)
    inputs = components.ComponentInputs(
        model=model,
        decomposition=decomposition,
        states=states,
        neutral=neutral,
        harmless=harmless,
    )
    return patch_stages.HeadEvidence(
        model=model,
        decomposition=decomposition,
        components=journal.run_one(components.SCORE_COMPONENTS, inputs),
        head_states=states,
        neutral_texts=neutral,
        harmless_texts=harmless,
        continuations=texts,
    )


def choose_harmless_texts(
    journal: RunJournal,
    model: ArtifactReference,
    sources: Sources,
    texts: Sequence[ArtifactReference],
    scores: Sequence[ArtifactReference],
    key: components.HarmlessKey,
) -> ArtifactReference:
    """Harmless text of the domain: of what the base said, and of the labelled samples."""
    inputs = components.HarmlessInputs(
        model=model,
        continuations=tuple(texts),
        scores=tuple(scores),
        samples=list_files(journal, sources, Role.labelled),
    )
    return journal.run_one(components.CHOOSE_HARMLESS_TEXTS, inputs, key)


def _provide_texts(
    journal: RunJournal, model: ArtifactReference, sources: Sources
) -> tuple[tuple[ArtifactReference, ...], tuple[ArtifactReference, ...]]:
    """Texts that states are taken from, and their scores: continuations, or labelled texts.

    Raises:
        EvaluationError: Too few continuations could be scored.
    """
    settings = journal.settings
    if settings.components.states_from is StateSource.generations:
        prompts = journal.refer_to_files(sources.prompts, tables.SELECTION_PROMPTS)
        generated = generate(journal, model, prompts, {BASE_ARM: Arm(patch=None)})
        scores = generated.scores[BASE_ARM]
        facts = map(journal.read_facts, scores)
        require_scored_shards(facts, settings.scorer.max_unscored_share, "selection prompts")
        return generated.continuations[BASE_ARM], scores
    samples = list_files(journal, sources, Role.labelled)
    inputs = components.LabelledTextInputs(model=model, samples=samples)
    texts = journal.run_one(components.ENCODE_LABELLED_TEXT, inputs)
    return (texts,), (texts,)


def build_patches(
    journal: RunJournal, evidence: patch_stages.HeadEvidence, requests: Mapping[str, PatchRequest]
) -> dict[str, ArtifactReference]:
    """Build the patch of each named arm."""
    fisher = _find_fisher_components(journal, evidence, requests.values())
    building = {}
    for arm, request in requests.items():
        place = FISHER_PLACES.get(request.intervention)
        found = None if place is None else fisher[place, request.max_perplexity_increase]
        read = evidence.model_copy(update={"fisher": found})
        building[arm] = journal.submit(
            patch_stages.BUILD_PATCH,
            read.keep(list_needs(request)),
            patch_stages.PatchKey.of(journal.settings, request=request),
            arm,
        )
    return dict(zip(requests, journal.collect(patch_stages.BUILD_PATCH, building), strict=True))


def _find_fisher_components(
    journal: RunJournal, evidence: patch_stages.HeadEvidence, requests: Iterable[PatchRequest]
) -> dict[tuple[patch_stages.FisherPlace, float], ArtifactReference]:
    """What the requests' interventions in the Fisher metric need, each place and budget once."""
    wanted = {
        (FISHER_PLACES[request.intervention], request.max_perplexity_increase)
        for request in requests
        if request.intervention in FISHER_PLACES
    }
    if not wanted:
        return {}
    inputs = patch_stages.FisherInputs(
        model=evidence.model,
        states=evidence.head_states,
        continuations=evidence.continuations,
        neutral=evidence.neutral_texts,
        harmless=evidence.harmless_texts,
    )
    finding = {}
    for place, budget in sorted(wanted):
        key = patch_stages.FisherKey.of_place(journal.settings, place, budget)
        label = f"{place.value} {budget:.3g}"
        finding[label] = journal.submit(patch_stages.FIND_FISHER_COMPONENTS, inputs, key, label)
    found = journal.collect(patch_stages.FIND_FISHER_COMPONENTS, finding)
    return dict(zip(sorted(wanted), found, strict=True))


def evaluate_arms(
    journal: RunJournal, model: ArtifactReference, sources: Sources, arms: Mapping[str, Arm]
) -> ArtifactReference:
    """Generate, score and compare all arms on the same prompts, seeds and neutral texts."""
    settings, names = journal.settings, tuple(sorted(arms))
    prompts = journal.refer_to_files(sources.prompts, tables.EVALUATION_PROMPTS)
    generated = generate(journal, model, prompts, arms)
    fluency = _measure_fluency(journal, model, sources, arms)
    indomain = _measure_indomain(journal, model, sources, arms, generated)
    shards = generated.continuations
    judged = evaluation.ArmScores(scores=generated.scores)
    others = tuple(
        evaluation.FurtherArmScores(scores=scores) for scores in score_further(journal, shards)
    )
    inputs = evaluation.ComparisonInputs(
        prompts=prompts,
        continuations=shards,
        judged=judged,
        further=others,
        fluency=fluency,
        indomain=indomain,
    )
    key = evaluation.ComparisonKey.of(settings, arms=names)
    compared = journal.run_one(evaluation.COMPARE_ARMS, inputs, key)
    if settings.further_scorers:
        of_all = evaluation.AgreementInputs(continuations=shards, judged=judged, further=others)
        agreement_key = evaluation.AgreementKey.of(settings, arms=names)
        journal.run_one(evaluation.COMPARE_SCORERS, of_all, agreement_key)
    return compared


def score_further(journal: RunJournal, shards: Shards) -> list[Shards]:
    """What each further scorer says of continuations, in the order of the settings."""
    return [
        _score(
            journal,
            toxicity.SCORE_FURTHER,
            toxicity.FurtherScoringKey(scorer=scorer.name),
            scorer,
            of=shards,
        )
        for scorer in journal.settings.further_scorers
    ]


def _measure_fluency(
    journal: RunJournal, model: ArtifactReference, sources: Sources, arms: Mapping[str, Arm]
) -> tuple[ArtifactReference, ...]:
    """Measure all arms on the neutral texts, shard by shard."""
    settings = journal.settings
    files = list_files(journal, sources, Role.neutral)
    patches = {name: arm.patch for name, arm in arms.items()}

    def count_evaluated() -> list[int]:
        shards = map(journal.artifacts.read_table, files)
        return [len(split_neutral(shard, for_calibration=False)) for shard in shards]

    n_rows = [file.rows or 0 for file in files]
    n_texts = allot_texts(n_rows, settings.evaluation.max_texts, count_evaluated)
    pieces = (
        (
            evaluation.FluencyInputs(model=model, texts=file, patches=patches),
            evaluation.FluencyKey.of(settings, arms=tuple(patches), n_texts=count),
        )
        for file, count in zip(files, n_texts, strict=True)
        if count
    )
    return tuple(journal.run_each(evaluation.MEASURE_FLUENCY, pieces))


def _measure_indomain(
    journal: RunJournal,
    model: ArtifactReference,
    sources: Sources,
    arms: Mapping[str, Arm],
    generated: Generated,
) -> tuple[ArtifactReference, ...]:
    """Measure all arms on harmless texts of the domain that none was made of."""
    settings = journal.settings
    if not settings.harmless.n_evaluated:
        return ()
    key = components.HarmlessKey.of_evaluation(settings)
    texts, scores = generated.continuations[BASE_ARM], generated.scores[BASE_ARM]
    harmless = choose_harmless_texts(journal, model, sources, texts, scores, key)
    patches = {name: arm.patch for name, arm in arms.items()}
    inputs = evaluation.IndomainInputs(model=model, texts=harmless, patches=patches)
    arms_key = evaluation.IndomainKey.of(settings, arms=tuple(patches))
    return (journal.run_one(evaluation.MEASURE_INDOMAIN, inputs, arms_key),)
