"""One arm's answers to one of the tasks asked for.

Reads the model, a patch and a task; writes `benchmark_answers.parquet`
(`schemas.BENCHMARK_ANSWERS`), one row per question and metric.
"""

from __future__ import annotations

from eigenshift.base import schemas
from eigenshift.benchmarks.harness import answer_questions
from eigenshift.benchmarks.stages import AnswerInputs, AnswerKey
from eigenshift.benchmarks.tasks import find_version
from eigenshift.model.loading import use_model
from eigenshift.patches.patching import open_patch
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace


def carry_out(inputs: AnswerInputs, key: AnswerKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `answer_questions`."""
    patch = None if inputs.patch is None else open_patch(bench.artifacts.open(inputs.patch))
    with use_model(bench.model, bench.execution) as language_model:
        found = answer_questions(
            language_model,
            patch,
            inputs.task.name,
            key,
            answers_per_batch=bench.execution.answers_per_batch,
        )
    workspace.write_rows(tables.BENCHMARK_ANSWERS.file, found.rows, schemas.BENCHMARK_ANSWERS)
    workspace.facts = {"lm_eval": find_version(), "tasks": found.tasks}
