"""The harness on a model in memory: its own numbers, also under a patch; ruin is caught."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.base.errors import EvaluationError, SettingsError
from eigenshift.benchmarks import harness
from eigenshift.benchmarks.comparison import compare_answers
from eigenshift.benchmarks.harness import Answers, answer_questions
from eigenshift.benchmarks.stages import AnswerComparisonKey, AnswerKey
from eigenshift.evaluation.capability import check_capability
from eigenshift.model.chat import ChatFormat
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, load_model, wrap_model
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.patching import Patch, apply_patch, make_patch
from eigenshift.settings import GateSettings, load_preset
from tests.support.architectures import damp_head, make_architecture
from tests.support.benchmark_tasks import ENDINGS, QUESTIONS, write_task
from tests.support.chat_templates import PLAIN as PLAIN_TEMPLATE
from tests.support.divided_models import divide

pytest.importorskip("lm_eval", reason="the extra `benchmark` is not installed (make install)")

PLAIN = AnswerKey(limit=None, num_fewshot=None, apply_chat_template="auto", dtype="float32")


def answer(
    language_model: LanguageModel, name: Path | str, patch: Patch | None = None, **changes: Any
) -> Answers:
    """What the model answers."""
    key = PLAIN.model_copy(update=changes)
    return answer_questions(language_model, patch, str(name), key, answers_per_batch=4)


def ask_directly(
    folder: Path, task: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[tuple[str, str], list[float]]:
    """The harness's own way: its loader of a model's folder, its evaluation, in the task's place.

    Returns:
        Task and metric -> marks, in the order of the questions.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(task)
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        device="cpu",
        tasks=TaskManager(include_path=str(task), include_defaults=False).all_subtasks,
        task_manager=TaskManager(include_path=str(task), include_defaults=False),
        bootstrap_iters=0,
        batch_size=1,
        **options,
    )
    assert found is not None
    marks = {
        (name, metric): [float(sample[metric]) for sample in samples]
        for name, samples in found["samples"].items()
        for metric in samples[0]["metrics"]
    }
    for (name, metric), values in marks.items():
        assert found["results"][name][f"{metric},none"] == pytest.approx(np.mean(values))
    return marks


def gather(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Task and metric -> marks, in the order of the questions."""
    marks: dict[tuple[str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["question_index"]):
        marks.setdefault((row["task"], row["metric"]), []).append(row["value"])
    return marks


@pytest.fixture(scope="module")
def demo_model() -> LanguageModel:
    """The demo's language model: it knows the sentences of its corpus."""
    return load_model(load_preset("demo").model, device="cpu")


def make_noise(language_model: LanguageModel, rank: int, scale: float) -> Patch:
    """A patch that adds a random product of this rank to what enters the head."""
    generator = torch.Generator().manual_seed(0)
    width = language_model.head_weight.shape[1]
    left = scale * torch.randn(width, rank, generator=generator)
    right, _ = torch.linalg.qr(torch.randn(width, rank, generator=generator))
    edit = ModelEdit(HeadEdit.add_product(left, right))
    return make_patch(language_model, edit, model_id="test", intervention="noise")


def make_silence(language_model: LanguageModel) -> Patch:
    """A patch that removes all that enters the head."""
    everything = np.eye(language_model.head_weight.shape[1])
    edit = ModelEdit(HeadEdit.scale_directions(everything, 0.0))
    return make_patch(language_model, edit, model_id="test", intervention="silence")


def test_a_model_with_its_first_weights_on_disk_answers_the_same(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """The harness would put questions on the device of the first weight, which is nowhere."""
    made = make_architecture("llama", vocab_size=len(tiny_tokenizer))
    whole = wrap_model(made, tiny_tokenizer, model_id="tiny", digest="d")
    (tmp_path / "offloaded").mkdir()
    divided = divide(whole, tmp_path / "offloaded")
    assert divided.model.device.type == "meta"
    write_task(tmp_path)
    expected, found = (gather(answer(one, tmp_path).rows) for one in (whole, divided))
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"limit": 4}, {"limit": 4}),
        ({"num_fewshot": 2}, {"num_fewshot": 2}),
    ],
    ids=["as the task says", "the first four", "two examples"],
)
def test_numbers_are_those_of_the_harness_itself(
    tiny_language_model: LanguageModel,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Question by question, from another loading of the model, with its own batches."""
    write_task(tmp_path, fewshot_split="test")
    found = answer(tiny_language_model, tmp_path, **changes)
    direct = ask_directly(tiny_model_folder, tmp_path, monkeypatch, **options)
    assert gather(found.rows) == direct
    assert set(direct) == {("small", "acc"), ("small", "acc_norm")}
    assert {row["metric"] for row in found.rows if row["is_main"]} == {"acc"}
    assert found.tasks == {
        "small": {
            "version": 1.0,
            "num_fewshot": options.get("num_fewshot", 0),
            "n_questions": options.get("limit", len(QUESTIONS)),
        }
    }


def test_under_a_patch_the_numbers_are_those_of_the_patched_model(
    tiny_language_model: LanguageModel,
    tmp_path: Path,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Folded, and with hooks; of a tied head, which the harness ties again when it gets a model."""
    write_task(tmp_path / "tasks", questions=QUESTIONS * 5)
    patch = make_noise(tiny_language_model, 8, 3.0)
    head = digest_tensor(tiny_language_model.head_weight)
    found = answer(tiny_language_model, tmp_path / "tasks", patch)
    obstacle = patch.description.model_copy(update={"obstacle": "to be hooked"})
    hooked = answer(tiny_language_model, tmp_path / "tasks", replace(patch, description=obstacle))
    assert digest_tensor(tiny_language_model.head_weight) == head
    base = answer(tiny_language_model, tmp_path / "tasks")
    applied = apply_patch(tiny_language_model, patch)
    try:
        tiny_language_model.model.save_pretrained(tmp_path / "patched")
    finally:
        applied.undo()
    tiny_tokenizer.save_pretrained(tmp_path / "patched")
    direct = ask_directly(tmp_path / "patched", tmp_path / "tasks", monkeypatch)
    assert gather(found.rows) == gather(hooked.rows) == direct
    assert gather(base.rows) != direct


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (make_silence, 0.6),
        (lambda model: make_noise(model, 64, 10.0), 0.6),
        (lambda model: make_noise(model, 8, 3.0), 0.8),
    ],
    ids=["silence", "noise", "a little noise"],
)
def test_a_patch_that_ruins_the_model_is_caught(
    demo_model: LanguageModel, make: Callable[[LanguageModel], Patch], most: float
) -> None:
    """The demo's model knows how its sentences end; ruined it guesses, and the gate says so."""
    rows = compare(demo_model, make(demo_model))
    base, ours = (row for row in rows if row["task"] == "all")
    assert base["value"] > 0.95
    assert ours["value"] < most
    assert ours["p_value"] < 0.001
    for bound in (0.02, 0.15):
        (check,) = check_capability(rows, GateSettings(max_capability_drop=bound), "ruined")
        assert not check.is_passed


def test_a_patch_that_does_little_is_not(demo_model: LanguageModel) -> None:
    """A hundredth along a few directions changes no answer; 214 questions suffice for 2 points."""
    patch = make_patch(
        demo_model, damp_head(demo_model, 0.99), model_id="demo", intervention="little"
    )
    rows = compare(demo_model, patch)
    (check,) = check_capability(rows, GateSettings(max_capability_drop=0.02), "ruined")
    assert check.is_passed, check.explain()


def compare(language_model: LanguageModel, patch: Patch) -> list[dict[str, Any]]:
    """`schemas.BENCHMARKS` rows of the base and a patch, arm "ruined"."""
    answers = {
        "base": answer(language_model, ENDINGS).rows,
        "ruined": answer(language_model, ENDINGS, patch).rows,
    }
    key = AnswerComparisonKey(arms=("base", "ruined"), n_bootstrap=500, confidence=0.95, seed=0)
    return list(compare_answers(answers, key))


def test_nothing_is_left_behind(
    tiny_language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's random numbers, the tokenizer, the working folder, the cache of data sets."""
    home = tmp_path / "home"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home)
    write_task(tmp_path / "tasks")
    tokenizer = deepcopy(tiny_language_model.tokenizer)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    answer(tiny_language_model, tmp_path / "tasks")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == states
    assert tiny_language_model.tokenizer.padding_side == tokenizer.padding_side
    assert tiny_language_model.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == [
        "small.csv",
        "small.yaml",
    ]
    assert not home.exists()


def test_data_is_read_as_it_is_now(tiny_language_model: LanguageModel, tmp_path: Path) -> None:
    """`datasets` keeps copies of files by name and time of last write; ours are of this call."""
    write_task(tmp_path)
    assert answer(tiny_language_model, tmp_path).tasks["small"]["n_questions"] == len(QUESTIONS)
    write_task(tmp_path, questions=QUESTIONS[:3])
    assert answer(tiny_language_model, tmp_path).tasks["small"]["n_questions"] == 3


@pytest.fixture
def chat_model(tiny_language_model: LanguageModel) -> LanguageModel:
    """The tiny model with a chat template, studied as a chat model."""
    tokenizer = deepcopy(tiny_language_model.tokenizer)
    tokenizer.chat_template = PLAIN_TEMPLATE
    chat = ChatFormat(tokenizer, "tiny", system_prompt="Sum up.")
    return replace(tiny_language_model, tokenizer=tokenizer, chat=chat)


@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_a_chat_model_is_asked_as_the_harness_asks_chat_models(
    chat_model: LanguageModel,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_fewshot: int,
) -> None:
    """Its template and its system message; examples are turns of the conversation."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    chat_model.tokenizer.save_pretrained(folder)
    write_task(tmp_path / "tasks", fewshot_split="test")
    found = answer(chat_model, tmp_path / "tasks", num_fewshot=num_fewshot)
    direct = ask_directly(
        folder,
        tmp_path / "tasks",
        monkeypatch,
        num_fewshot=num_fewshot,
        apply_chat_template=True,
        system_instruction="Sum up.",
    )
    assert gather(found.rows) == direct


def test_a_chat_template_is_used_as_the_model_is_studied_unless_told(
    chat_model: LanguageModel, tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """What the model was shown differs, the questions are the same."""
    write_task(tmp_path)

    def list_prompts(model: LanguageModel, switch: str) -> set[str]:
        rows = answer(model, tmp_path, apply_chat_template=switch).rows
        return {row["prompt_hash"] for row in rows}

    raw = list_prompts(tiny_language_model, "auto")
    assert list_prompts(chat_model, "off") == raw
    assert not list_prompts(chat_model, "auto") & raw
    unstudied = replace(chat_model, chat=None)
    assert list_prompts(unstudied, "auto") == raw
    assert not list_prompts(unstudied, "on") & raw
    with pytest.raises(SettingsError, match="expected a chat template in the tokenizer"):
        list_prompts(tiny_language_model, "on")


@pytest.mark.parametrize("format_", ["csv", "json"])
def test_mmlu_style_files_without_a_head_and_lines_of_json(
    tiny_language_model: LanguageModel, tmp_path: Path, format_: str
) -> None:
    """The public MMLU CSVs: question, four answers, a letter; no names of columns."""
    rows = [f"How many is {n} and 1?,{n},{n + 1},{n + 2},{n + 3},B" for n in range(5)]
    kwargs: dict[str, Any] = {"data_files": {"test": "anatomy_test.csv"}}
    columns = ["question", "a", "b", "c", "d", "answer"]
    if format_ == "csv":
        kwargs["column_names"] = columns
        text = "\n".join(rows)
    else:
        import json

        text = "\n".join(
            json.dumps(dict(zip(columns, row.split(","), strict=True))) for row in rows
        )
    (tmp_path / "anatomy_test.csv").write_text(text + "\n")
    write_task(
        tmp_path,
        dataset_path=format_,
        dataset_kwargs=kwargs,
        doc_to_text="{{question}}\nA. {{a}}\nB. {{b}}\nC. {{c}}\nD. {{d}}\nAnswer:",
        doc_to_choice=["A", "B", "C", "D"],
        doc_to_target="{{['A', 'B', 'C', 'D'].index(answer)}}",
    )
    assert answer(tiny_language_model, tmp_path).tasks["small"]["n_questions"] == 5


def test_answers_that_are_written_are_marked_too(
    tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """A task that has the model write: exact match is its share of right answers."""
    write_task(
        tmp_path,
        output_type="generate_until",
        doc_to_target="{{sol1}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 4},
        doc_to_choice=None,
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    rows = answer(tiny_language_model, tmp_path).rows
    assert {row["metric"] for row in rows if row["is_main"]} == {"exact_match"}
    assert len(rows) == len(QUESTIONS)


def test_a_task_without_a_share_of_right_answers_is_refused(
    tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """Perplexity is no capability in points, and no mean over questions."""
    write_task(
        tmp_path,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{goal}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    with pytest.raises(EvaluationError, match="found word_perplexity"):
        answer(tiny_language_model, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"doc_to_text": "{{none.of.these}}"}, {"dataset_path": "no/such/dataset"}],
    ids=["a column", "a data set"],
)
def test_what_the_harness_cannot_read_is_explained(
    tiny_language_model: LanguageModel, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """With the task's place, and without its text."""
    write_task(tmp_path, **changes)
    with pytest.raises(EvaluationError, match="dataset_kwargs") as caught:
        answer(tiny_language_model, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "kettle" not in str(caught.value)


def test_a_task_by_its_name_is_the_harnesss_own(
    tiny_language_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its index has it; an unknown one is told, and so is a hub that cannot be reached."""
    from lm_eval.tasks import TaskManager

    write_task(tmp_path)
    known = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness, "index_tasks", lambda: known)
    monkeypatch.chdir(tmp_path)
    by_name = answer(tiny_language_model, "small")
    assert by_name == answer(tiny_language_model, tmp_path)
    with pytest.raises(SettingsError, match="found 'smal'"):
        answer(tiny_language_model, "smal")

    def refuse(_: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(known, "load", refuse)
    with pytest.raises(EvaluationError, match="a hub, which may not be reachable"):
        answer(tiny_language_model, "small")
