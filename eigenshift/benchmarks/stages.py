"""Stages of this room: questions answered by every arm, and the arms compared by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from eigenshift.settings.fields import Switch
from eigenshift.stages import tables
from eigenshift.stages.edges import Model
from eigenshift.stages.inputs import Inputs, Of, Outside
from eigenshift.stages.keys import Key, Reads
from eigenshift.stages.stage import Stage
from eigenshift.store.manifests import ArtifactReference


class BenchmarkTask(Outside):
    """A task of the harness, by its name, or files in the harness's format."""

    kind: ClassVar[str] = "benchmark_task"
    name: str

    def identify(self) -> str:
        """Digest of the files and of the harness's version."""
        from eigenshift.benchmarks.tasks import identify_task

        return identify_task(self.name)


class AnswerInputs(Inputs):
    """The model, one of the tasks asked for, and the arm's patch; the base has none."""

    model: Model
    task: Annotated[BenchmarkTask, Reads("benchmark.tasks")]
    patch: Annotated[ArtifactReference | None, Of(("patch",))] = None


class AnswerKey(Key):
    """How questions are put, and the precision the model runs in."""

    limit: Annotated[int | None, Reads("benchmark.limit")]
    num_fewshot: Annotated[int | None, Reads("benchmark.num_fewshot")]
    apply_chat_template: Annotated[Switch, Reads("benchmark.apply_chat_template")]
    dtype: Annotated[str, Reads("model.dtype")]


ANSWER_QUESTIONS = Stage(
    name="answer_questions",
    kind="benchmark_answers",
    version=1,
    inputs=AnswerInputs,
    key=AnswerKey,
    files=(tables.BENCHMARK_ANSWERS,),
    work="eigenshift.benchmarks.answers:carry_out",
    runs_model=True,
)


class AnswerComparisonInputs(Inputs):
    """Every arm's answers to all tasks."""

    answers: Annotated[
        Mapping[str, tuple[ArtifactReference, ...]],
        Of(("benchmark_answers",), tables.BENCHMARK_ANSWERS, by_name=True),
    ]


class AnswerComparisonKey(Key):
    """The arms, and intervals."""

    arms: tuple[str, ...]
    n_bootstrap: Annotated[int, Reads("evaluation.n_bootstrap")]
    confidence: Annotated[float, Reads("evaluation.confidence")]
    seed: Annotated[int, Reads("evaluation.seed")]


COMPARE_ANSWERS = Stage(
    name="compare_answers",
    kind="benchmarks",
    version=1,
    inputs=AnswerComparisonInputs,
    key=AnswerComparisonKey,
    files=(tables.BENCHMARKS,),
    work="eigenshift.benchmarks.comparison:carry_out",
)
