"""Base and patched models answer the same questions: a stage of a refresh, of `compare`, or a run.

`benchmark`, started by `eigenshift benchmark`, is about the patch of an earlier run, which it
leaves as it was: what it finds is in a record of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from prefect import flow

from eigenshift.base.arms import BASE_ARM
from eigenshift.base.errors import ArtifactError, SettingsError
from eigenshift.benchmarks import stages as benchmarks
from eigenshift.benchmarks.tasks import require_tasks
from eigenshift.evaluation.capability import summarise_capability
from eigenshift.ledger.runs import BENCHMARK, RunRecord, choose_run
from eigenshift.patches.stages import BUILD_PATCH
from eigenshift.reporting.benchmark_tables import Benchmark
from eigenshift.settings import RefreshSettings, override_settings
from eigenshift.stages import tables
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.storage import Store
from flows import stages
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.publication import publish_benchmark
from flows.run_labels import name_run
from flows.runners import run_tasks

PATCHING_COMMANDS = ("refresh", "compare")
DEFAULT_TASK = "piqa"
"""1,838 questions of everyday physics with two answers each: minutes on a CPU for a small model."""


def measure_benchmarks(
    journal: RunJournal,
    model: ArtifactReference,
    patches: Mapping[str, ArtifactReference | None],
) -> list[dict[str, Any]]:
    """Put all tasks to the base and each patched model, and compare their answers.

    Args:
        journal: Of the run.
        model: The base.
        patches: Arm -> its patch; None is the base.

    Returns:
        `schemas.BENCHMARKS` rows; none where the settings name no task.
    """
    tasks = journal.settings.benchmark.tasks
    if not tasks:
        return []
    key = benchmarks.AnswerKey.of(journal.settings)
    answers: dict[str, list[ArtifactReference]] = {arm: [] for arm in patches}
    for name in tasks:
        task = benchmarks.BenchmarkTask(name=name)
        answering = {
            arm: journal.submit(
                benchmarks.ANSWER_QUESTIONS,
                benchmarks.AnswerInputs(model=model, task=task, patch=patch),
                key,
                f"{PurePath(name).name} {arm}",
            )
            for arm, patch in patches.items()
        }
        made = journal.collect(benchmarks.ANSWER_QUESTIONS, answering)
        for arm, reference in zip(answering, made, strict=True):
            answers[arm].append(reference)
    inputs = benchmarks.AnswerComparisonInputs(
        answers={arm: tuple(found) for arm, found in answers.items()}
    )
    compared = journal.run_one(
        benchmarks.COMPARE_ANSWERS,
        inputs,
        benchmarks.AnswerComparisonKey.of(journal.settings, arms=tuple(sorted(answers))),
    )
    return list(journal.read(compared, tables.BENCHMARKS).to_pylist())


@flow(name=BENCHMARK, flow_run_name=name_run, result_serializer="json")
def benchmark(settings: RefreshSettings, run: str, arm: str | None = None) -> Benchmark:
    """Ask what the patch of an earlier run cost in capability.

    Args:
        settings: Of that run, with `benchmark.tasks`.
        run: Its id.
        arm: Which of its patches; by default the one that was judged.
    """
    use_credentials(settings.execution.credentials_block)
    require_tasks(settings.benchmark.tasks)
    journal = RunJournal(BENCHMARK, settings)
    about = choose_run(journal.artifacts.store, run)
    judged = arm or about.judged
    patch = find_patch(about, judged)
    journal.record.judged = judged
    with journal.recording(), run_tasks(settings.execution):
        journal.enter_found(BUILD_PATCH.name, patch, judged)
        model = stages.identify_model(journal)
        rows = measure_benchmarks(journal, model, {BASE_ARM: None, judged: patch})
        journal.record.metrics = summarise_capability(rows, judged)
        outcome = Benchmark(
            run_id=journal.record.run_id,
            store=journal.root,
            about=about.run_id,
            judged=judged,
            stages=journal.record.stages,
            benchmarks=rows,
        )
    publish_benchmark(outcome)
    return outcome


def find_patch(about: RunRecord, arm: str) -> ArtifactReference:
    """The patch of an arm of an earlier run.

    Raises:
        SettingsError: The run has none, or none of that arm.
    """
    if about.command not in PATCHING_COMMANDS:
        raise SettingsError(
            f"run {about.run_id}: expected a {' or '.join(PATCHING_COMMANDS)}, found a "
            f"{about.command}. Choose another, see `eigenshift runs`."
        )
    try:
        return about.find_artifact(BUILD_PATCH.kind, label=arm)
    except ArtifactError as error:
        labels = {use.label for use in about.artifacts if use.kind == "patch" and use.label}
        raise SettingsError(
            f"run {about.run_id}: expected a patch of arm {arm!r}, found "
            f"{', '.join(sorted(labels)) or 'none'}. Choose one with --arm, or another run."
        ) from error


def run_benchmark(
    store: str, run_id: str | None, arm: str | None, overrides: Sequence[str]
) -> Benchmark:
    """Run the flow here, by the settings of the run it is about.

    Args:
        store: Root URL of the store.
        run_id: A run with a patch; by default the latest refresh that ended.
        arm: Which of its patches; by default the one that was judged.
        overrides: `key.path=value`.

    Raises:
        SettingsError: There is no such run or patch, or an override does not fit.
    """
    about = choose_run(Store(store), run_id)
    settings = override_settings(about.settings, overrides, f"settings of run {about.run_id}")
    update: dict[str, Any] = {"store": store}
    if not settings.benchmark.tasks:
        update["benchmark"] = settings.benchmark.model_copy(update={"tasks": (DEFAULT_TASK,)})
    return benchmark(settings.model_copy(update=update), about.run_id, arm)
