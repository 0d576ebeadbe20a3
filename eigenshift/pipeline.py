"""Every stage, in the order of the data: what is read, what is made, and what a setting redoes.

Collects the declarations of all rooms, without importing their work. Verification and the tasks
read them; documents and tests also what follows from them (`find_readers`, `list_redone`). It
decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eigenshift.benchmarks import stages as benchmarks
from eigenshift.components import stages as components
from eigenshift.datasets import stages as datasets
from eigenshift.detection import stages as detection
from eigenshift.evaluation import stages as evaluation
from eigenshift.generation import stages as generation
from eigenshift.model import stages as model
from eigenshift.patches import stages as patches
from eigenshift.stages.inputs import Of
from eigenshift.stages.stage import Stage
from eigenshift.stages.tables import Table
from eigenshift.toxicity import stages as toxicity

STAGES: tuple[Stage[Any, Any], ...] = (
    datasets.READ_FILE,
    datasets.INGEST_SOURCE,
    generation.CHOOSE_PROMPTS,
    model.IDENTIFY_MODEL,
    detection.EXTRACT_ACTIVATIONS,
    detection.SUMMARISE_NEURONS,
    detection.COMPUTE_NEURON_STATISTICS,
    detection.COMPUTE_NEURON_STABILITY,
    detection.COMPUTE_LAYER_STATISTICS,
    detection.COMPUTE_LAYER_TRANSFERS,
    generation.GENERATE_CONTINUATIONS,
    toxicity.SCORE_CONTINUATIONS,
    components.ENCODE_LABELLED_TEXT,
    toxicity.LOCATE_TOXIC_WORDS,
    components.COLLECT_HEAD_STATES,
    components.CHOOSE_HARMLESS_TEXTS,
    components.DECOMPOSE_HEAD,
    components.SCORE_COMPONENTS,
    patches.FIND_FISHER_COMPONENTS,
    patches.BUILD_PATCH,
    evaluation.CHOOSE_INTERVENTION,
    evaluation.MEASURE_TOKEN_SHIFTS,
    evaluation.DRAW_CONTROLS,
    evaluation.MEASURE_FLUENCY,
    evaluation.MEASURE_INDOMAIN,
    toxicity.SCORE_FURTHER,
    evaluation.COMPARE_ARMS,
    evaluation.COMPARE_SCORERS,
    benchmarks.ANSWER_QUESTIONS,
    benchmarks.COMPARE_ANSWERS,
    evaluation.MEASURE_SCORERS,
    generation.GENERATE_LONG,
    toxicity.SCORE_LONG,
    evaluation.CONFIRM_AT_LENGTH,
    evaluation.CHECK_RELOAD,
    evaluation.MEASURE_SURVIVAL,
    evaluation.SCREEN_TRIALS,
    evaluation.PREDICT_TRIALS,
    evaluation.CONFIRM_TRIALS,
    evaluation.TABULATE_ARMS,
)
"""Of all commands; which of them a command takes is in its flow."""

BY_KIND = {stage.kind: stage for stage in STAGES}
"""Kind of artifact -> the stage that makes it."""


def find_table(kind: str, file: str) -> Table | None:
    """The table that a file of an artifact holds, None if it is none.

    Args:
        kind: Of the artifact.
        file: Its name.
    """
    stage = BY_KIND.get(kind)
    return None if stage is None else stage.find_table(file)


def list_outside_kinds() -> set[str]:
    """Kinds of inputs that lie outside the store."""
    edges = (edge for stage in STAGES for _, edge in stage.inputs.list_edges())
    return {edge.kind for edge in edges if not isinstance(edge, Of)}


def list_sources(stage: Stage[Any, Any]) -> Iterator[str]:
    """Kinds of all that a stage reads in a refresh, each once, in the order of its inputs."""
    kinds: dict[str, None] = {}
    for _, edge in stage.inputs.list_edges():
        if not isinstance(edge, Of):
            kinds[edge.kind] = None
        elif not edge.is_optional:
            kinds |= dict.fromkeys(edge.kinds)
    yield from kinds


def find_readers(path: str) -> list[Stage[Any, Any]]:
    """Stages that read a setting: by their key, or to find what lies outside the store.

    Args:
        path: Dotted, as in a settings file; of lists with brackets, e.g. "sources[].uri".
    """
    return [
        stage
        for stage in STAGES
        if any(covers(read, path) for read in (*stage.key.list_paths(), *stage.inputs.list_paths()))
    ]


def covers(read: str, path: str) -> bool:
    """Whether reading one place in the settings reads another: a section all its fields."""
    return path == read or path.startswith((f"{read}.", f"{read}["))


def list_redone(stage: Stage[Any, Any]) -> list[Stage[Any, Any]]:
    """A stage and all that follow from it: what is done again where its result is another.

    Continuations are made twice in a run, of the base for the study and of all arms for the
    evaluation: another patch redoes the second, which no study reads.
    """
    found = {stage.kind}
    for later in STAGES:
        sources = set(list_sources(later)) - {patches.BUILD_PATCH.kind}
        if found & sources:
            found.add(later.kind)
    if patches.BUILD_PATCH.kind in found:
        found |= {generation.GENERATE_CONTINUATIONS.kind, toxicity.SCORE_CONTINUATIONS.kind}
        for later in STAGES[STAGES.index(patches.BUILD_PATCH) :]:
            if found & set(list_sources(later)):
                found.add(later.kind)
    return [item for item in STAGES if item.kind in found]
