"""The harness on a model in memory: the only user of its package.

EleutherAI's lm-evaluation-harness builds the prompts, has the model weigh or write answers, and
marks them; nothing of this is done here. What comes back is its mark for each question. Its numbers
are those of `lm_eval` itself on the same model (tests/unit/benchmarks/test_harness.py).
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError

from eigenshift.base.errors import EvaluationError, SettingsError
from eigenshift.benchmarks.stages import AnswerKey
from eigenshift.benchmarks.tasks import (
    INSTALL,
    explain_unknown,
    find_version,
    index_tasks,
    is_path,
    list_file_tasks,
)
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.patching import Patch, patched_model
from eigenshift.store.scratch import scratch_folder

LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ImportError),
    *(DatasetsError, TemplateError),
)
"""What the harness raises where a task's data or code is not there or not right."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Answers:
    """What a model made of the questions of one or more tasks.

    Attributes:
        rows: `schemas.BENCHMARK_ANSWERS` rows.
        tasks: Task -> its version, solved examples before a question, and number of questions.
    """

    rows: list[dict[str, Any]]
    tasks: dict[str, dict[str, Any]]


def answer_questions(
    language_model: LanguageModel,
    patch: Patch | None,
    name: str,
    key: AnswerKey,
    *,
    answers_per_batch: int,
) -> Answers:
    """Put a task's questions to a model.

    Args:
        language_model: The unpatched model, the caller's alone meanwhile.
        patch: In force meanwhile; None is the base.
        name: As in `benchmark.tasks`: one task, or all of a group or folder.
        key: How questions are put.
        answers_per_batch: Does not change the result but for rounding.

    Raises:
        SettingsError: The harness is not installed, or knows no such task, or there is no chat
            template.
        EvaluationError: A task's questions cannot be read, or it has no share of right answers.
        ComponentError: The patch was made for another model.
    """
    harness = _import_harness()
    chat, is_chat = language_model.chat, _is_chat(language_model, key)
    # Made before the patch is in force: it ties a tied model's head again, which undoes the patch
    # without a word (findings/lm_eval_ties_weights.sh).
    wrapped = harness.HFLM(
        pretrained=language_model.model,
        backend="causal",
        tokenizer=deepcopy(language_model.tokenizer),
        batch_size=answers_per_batch,
        enable_thinking=False if is_chat else None,
    )
    wrapped._device = language_model.device  # it takes the first weight's, "meta" if on disk
    with (
        tempfile.TemporaryDirectory(dir=scratch_folder()) as cache,
        _seeded(harness),
        patched_model(language_model, patch),
    ):
        tasks = _load_tasks(name, Path(cache))
        for task in tasks.values():
            _set_examples(task, key.num_fewshot, harness.seed)
        found = harness.evaluate(
            wrapped,
            {"tasks": tasks},
            limit=key.limit,
            bootstrap_iters=0,  # intervals are paired, and ours
            apply_chat_template=is_chat,
            system_instruction=None if chat is None or not is_chat else chat.system_prompt,
            fewshot_as_multiturn=True,  # as its command line does
        )
    return Answers(
        rows=[row for task in found["samples"] for row in _list_marks(task, found)],
        tasks={
            task: {
                "version": found["versions"][task],
                "num_fewshot": found["n-shot"][task],
                "n_questions": found["n-samples"][task]["effective"],
            }
            for task in found["samples"]
        },
    )


@dataclass(frozen=True)
class _Harness:
    """What is used of the package; seeds are its command line's own."""

    evaluate: Any
    HFLM: Any
    seed: int
    python_seed: int


def _import_harness() -> _Harness:
    find_version()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings quote questions
    try:
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise SettingsError(
            f"benchmark.tasks: expected all that lm-eval needs, found {error.name} missing. "
            f"{INSTALL}."
        ) from error
    return _Harness(evaluate, HFLM, DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED)


def _is_chat(language_model: LanguageModel, key: AnswerKey) -> bool:
    """Whether questions are put through the chat template."""
    if key.apply_chat_template == "auto":
        return language_model.chat is not None
    is_chat = key.apply_chat_template == "on"
    if is_chat and not language_model.tokenizer.chat_template:
        raise SettingsError(
            f"benchmark.apply_chat_template: expected a chat template in the tokenizer of "
            f"{language_model.id}, found none. Leave it at auto."
        )
    return is_chat


@contextmanager
def _seeded(harness: _Harness) -> Iterator[None]:
    """Seed the process's generators as the command line does; afterwards they are as they were."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(harness.python_seed)
        np.random.seed(harness.seed)
        torch.manual_seed(harness.seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _set_examples(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Solved examples before each question: a task that says 0 keeps to it."""
    own = task.get_config("num_fewshot")
    if own is None or (own != 0 and num_fewshot is not None):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=seed)


def _load_tasks(name: str, cache: Path) -> dict[str, Any]:
    """The harness's task objects by name, with their questions.

    Args:
        name: As in `benchmark.tasks`.
        cache: Folder for copies of questions in files: they are read as they are now.
    """
    try:
        if not is_path(name):
            return dict(index_tasks().load([name])["tasks"])
        return _load_file_tasks(name, cache)
    except LOADING_ERRORS as error:
        if not is_path(name) and name not in index_tasks().task_index:
            raise SettingsError(explain_unknown(name)) from error
        raise EvaluationError(
            f"{name}: expected a benchmark task with its questions, found {type(error).__name__}. "
            "A task of the harness takes its questions from a hub, which may not be reachable from "
            "here; without one, name a folder of task files in benchmark.tasks. Of task files, "
            "check dataset_path, dataset_kwargs and the columns named."
        ) from error


def _load_file_tasks(name: str, cache: Path) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    found = list_file_tasks(name)
    place = Path(name)
    manager = TaskManager(
        include_path=str(place if place.is_dir() else place.parent), include_defaults=False
    )
    members = [
        {"task": task.name}
        | (
            {"dataset_kwargs": {**task.dataset_kwargs, "cache_dir": str(cache)}}
            if task.dataset_kwargs
            else {}
        )
        for task in found
    ]
    return dict(manager.load([{"group": "eigenshift_files", "task": members}])["tasks"])


def _list_marks(task: str, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of one task: of each metric that is a mean over questions."""
    marks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for sample in found["samples"][task]:
        for metric in sample["metrics"]:
            marks.setdefault((metric, sample["filter"]), []).append(sample)
    result, is_better = found["results"][task], found["higher_is_better"][task]
    means = [
        (metric, filter_name)
        for (metric, filter_name), samples in marks.items()
        if _is_mean([item[metric] for item in samples], result.get(f"{metric},{filter_name}"))
    ]
    main = next(
        (
            (metric, filter_name)
            for metric, filter_name in means
            if is_better.get(metric)
            and all(0 <= item[metric] <= 1 for item in marks[metric, filter_name])
        ),
        None,
    )
    if main is None:
        raise EvaluationError(
            f"benchmark task {task}: expected a metric that is a share of right answers (acc, "
            f"exact_match), found {', '.join(sorted({metric for metric, _ in marks}))}. Leave the "
            "task out of benchmark.tasks."
        )
    for metric, filter_name in means:
        for sample in marks[metric, filter_name]:
            yield {
                "task": task,
                "metric": metric,
                "filter": filter_name,
                "is_main": (metric, filter_name) == main,
                "question_index": sample["doc_id"],
                "question_hash": sample["doc_hash"],
                "prompt_hash": sample["prompt_hash"],
                "value": float(sample[metric]),
            }


def _is_mean(values: Sequence[Any], aggregated: Any) -> bool:
    """Whether a metric is the mean of its marks; perplexities and F1 over all questions are not."""
    if not all(isinstance(value, int | float | np.number) for value in values):
        return False
    is_number = isinstance(aggregated, int | float | np.number)
    return is_number and abs(float(np.mean(values)) - float(aggregated)) <= ROUNDING
