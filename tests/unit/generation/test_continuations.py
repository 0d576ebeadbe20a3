"""Generation: seeded per (prompt, sample), the same beside other arms, equal to a reference."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.decomposition import decompose_head
from eigenshift.generation.continuations import (
    LoadedArm,
    encode_prompts,
    generate_continuations,
)
from eigenshift.generation.sampling import draw_keys, spread_noise
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import AdaptiveEdit, HeadEdit, LogitEdit, ModelEdit, UnitEdit
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.settings import GenerationSettings
from eigenshift.store.workspace import Workspace

SETTINGS = GenerationSettings(n_samples=3, n_tokens=6)
BASE = LoadedArm(None)
Rows = list[dict[str, Any]]


@pytest.fixture
def prompts(neutral_texts: list[str]) -> pa.Table:
    """Nine prompts of different lengths, one of them empty."""
    texts = [*neutral_texts[:8], ""]
    rows = [
        {
            "prompt_id": f"p{place}",
            "part": "evaluation",
            "dataset": "made-up",
            "language": "en",
            "toxicity": None,
            "prompt": text,
        }
        for place, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PROMPTS)


def generate_all(
    language_model: LanguageModel,
    prompts: pa.Table,
    folder: Path,
    arms: Mapping[str, LoadedArm],
    settings: GenerationSettings = SETTINGS,
    sequences_per_batch: int = 64,
) -> dict[str, Rows]:
    """Generate with arms in one call and read back."""
    workspaces = {}
    for name in arms:
        (folder / name).mkdir(exist_ok=True, parents=True)
        workspaces[name] = Workspace(folder / name)
    written = list(
        generate_continuations(
            language_model,
            prompts,
            arms,
            settings,
            sequences_per_batch=sequences_per_batch,
            workspaces=workspaces,
        )
    )
    assert sorted(name for names in written for name in names) == sorted(arms)
    return {
        name: pq.read_table(workspace.path("continuations.parquet")).to_pylist()
        for name, workspace in workspaces.items()
    }


def generate(
    language_model: LanguageModel,
    prompts: pa.Table,
    workspace: Workspace,
    settings: GenerationSettings = SETTINGS,
    *,
    stream: str = "main",
    sequences_per_batch: int = 64,
) -> Rows:
    """Generate with the base alone and read back."""
    arms = {"base": LoadedArm(None, stream)}
    found = generate_all(
        language_model, prompts, workspace.folder, arms, settings, sequences_per_batch
    )
    return found["base"]


def make_filter(language_model: LanguageModel, shift: float) -> LogitEdit:
    """Twenty tokens become much rarer or likelier, by what enters the head, or for all states."""
    generator = torch.Generator().manual_seed(2)
    left = torch.zeros(language_model.vocab, 1, dtype=torch.float64)
    left[70:90] = torch.randn(20, 1, generator=generator, dtype=torch.float64) * 6.0
    right = torch.randn(language_model.head.hidden, 1, generator=generator, dtype=torch.float64)
    amount = torch.tensor([float(shift)], dtype=torch.float64)
    return LogitEdit(left, right * (0.3 if shift == 0 else 0.0), amount)


@pytest.fixture(scope="module")
def arms(tiny_language_model: LanguageModel) -> dict[str, LoadedArm]:
    """Base, A/A, patches of the head of several kinds and ranks, and one of the trunk."""
    v = decompose_head(tiny_language_model.head_weight).v
    filters = {
        name: make_filter(tiny_language_model, shift) for name, shift in (("rows", 0), ("bias", 1))
    }
    edits = {
        "removed": ModelEdit(HeadEdit.scale_directions(v[:, :6], 0.0)),
        "halved": ModelEdit(HeadEdit.scale_directions(v[:, 3:4], 0.5)),
        "centred": ModelEdit(
            HeadEdit.scale_directions(v[:, :4], 0.2, target=np.array([1.0, -2.0, 0.5, 3.0]))
        ),
        "filtered": ModelEdit(logits=filters["rows"]),
        "filtered_by_bias": ModelEdit(logits=filters["bias"]),
        "halved_and_filtered": ModelEdit(
            HeadEdit.scale_directions(v[:, 3:4], 0.5), logits=filters["rows"]
        ),
        "units": ModelEdit(
            units={
                "transformer.h.1.mlp.c_fc": UnitEdit.scale_units(np.linspace(0, 1, 128)),
            }
        ),
    }
    patches = {
        name: make_patch(tiny_language_model, edit, model_id="tiny", intervention=name)
        for name, edit in edits.items()
    }
    return {
        "base": BASE,
        "again": LoadedArm(None, "again"),
        **{name: LoadedArm(patch) for name, patch in patches.items()},
    }


class RaceProcessor(LogitsProcessor):  # type: ignore[no-untyped-call, misc, unused-ignore]
    """Leaves transformers' own greedy search nothing but the winner of our race."""

    def __init__(self, noise: Tensor, n_prompt: int, end: int) -> None:
        self.noise, self.n_prompt, self.end = noise, n_prompt, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Nucleus by sorting, then log p minus log E."""
        step = input_ids.shape[1] - self.n_prompt
        scores = scores.double()
        if step < SETTINGS.min_tokens:
            scores[:, self.end] = -torch.inf
        log_p = torch.log_softmax(scores, -1)
        ordered, token_ids = log_p.exp().sort(descending=True)
        kept = token_ids[0, (ordered.cumsum(1) - ordered < SETTINGS.top_p)[0]]
        race = torch.full_like(log_p, -torch.inf)
        race[0, kept] = log_p[0, kept] - self.noise[step, kept].double().log()
        return race


def generate_with_transformers(
    language_model: LanguageModel, row: Mapping[str, Any], patch: Patch | None, stream: str
) -> list[int]:
    """One continuation of one prompt by `generate` of a model with folded weights."""
    tokenizer, model = language_model.tokenizer, language_model.model
    keys = draw_keys(
        SETTINGS.seed, stream, row["prompt_id"], row["sample_index"], SETTINGS.n_tokens
    )
    noise = spread_noise(keys, language_model.vocab, torch.device("cpu"))
    prompt = torch.tensor([row["prompt_token_ids"]])
    processor = RaceProcessor(noise, prompt.shape[1], tokenizer.eos_token_id)
    with torch.inference_mode(), patched_model(language_model, patch):
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=SETTINGS.n_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([processor]),
            pad_token_id=tokenizer.pad_token_id,
        )
    tokens: list[int] = found[0, prompt.shape[1] :].tolist()
    return [token for token in tokens if token != tokenizer.eos_token_id]


def test_every_arm_equals_transformers_generate_with_folded_weights(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    tmp_path: Path,
    arms: dict[str, LoadedArm],
) -> None:
    """Independent reference: one sequence at a time, patched weights, a sorted nucleus."""
    found = generate_all(tiny_language_model, prompts, tmp_path, arms)
    for name, arm in arms.items():
        for row in found[name]:
            expected = generate_with_transformers(tiny_language_model, row, arm.patch, arm.stream)
            assert row["token_ids"] == expected
    different = {name: [row["token_ids"] for row in rows] for name, rows in found.items()}
    assert len({str(tokens) for tokens in different.values()}) == len(arms)


@pytest.mark.parametrize("sequences_per_batch", [1, 40, 1000])
def test_an_arm_beside_others_equals_the_arm_alone(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    tmp_path: Path,
    arms: dict[str, LoadedArm],
    sequences_per_batch: int,
) -> None:
    """Identical continuations, whatever the batch, the other arms and their order."""
    together = generate_all(
        tiny_language_model,
        prompts,
        tmp_path / "together",
        dict(reversed(arms.items())),
        sequences_per_batch=sequences_per_batch,
    )
    for name, arm in arms.items():
        alone = generate_all(tiny_language_model, prompts, tmp_path / "alone", {name: arm})
        assert together[name] == alone[name]


def test_arms_of_the_head_are_one_piece_of_work_and_arms_of_the_trunk_another(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    tmp_path: Path,
    arms: dict[str, LoadedArm],
) -> None:
    """Tables are handed over as soon as they are written."""
    workspaces = {}
    for name in arms:
        (tmp_path / name).mkdir()
        workspaces[name] = Workspace(tmp_path / name)
    pieces = generate_continuations(
        tiny_language_model,
        prompts,
        arms,
        SETTINGS,
        sequences_per_batch=64,
        workspaces=workspaces,
    )
    assert set(next(pieces)) == set(arms) - {"units"}
    assert not workspaces["units"].path("continuations.parquet").exists()
    assert next(pieces) == ("units",)
    assert next(pieces, None) is None


def test_an_arm_that_moves_states_by_what_they_are_is_generated_alone(
    tiny_language_model: LanguageModel, prompts: pa.Table, tmp_path: Path
) -> None:
    """It changes the trunk, by hooks, also token by token; with nothing to do it is the base."""
    generator = torch.Generator().manual_seed(0)
    readout, shift = (
        torch.randn(32, 2, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    edit = AdaptiveEdit(readout, torch.zeros(2).double(), torch.zeros(32, 2).double(), shift)
    arms = {"base": BASE}
    for name, strength in {"moved": 2.0, "idle": 0.0}.items():
        change = ModelEdit(adaptive={"transformer.h.1.ln_2": edit.scale_moves(strength)})
        patch = make_patch(tiny_language_model, change, model_id="tiny", intervention=name)
        assert patch.description.obstacle is not None
        arms[name] = LoadedArm(patch)
        assert arms[name].changes_trunk
    found = generate_all(tiny_language_model, prompts, tmp_path, arms)
    assert found["idle"] == found["base"]
    assert found["moved"] != found["base"]


def test_a_patch_of_another_model_is_refused(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    tmp_path: Path,
    arms: dict[str, LoadedArm],
) -> None:
    """Its edit would fit by shape and mean nothing."""
    head = tiny_language_model.head_module
    weight = head.weight
    head.weight = torch.nn.Parameter(weight + 1.0, requires_grad=False)
    try:
        with pytest.raises(ComponentError, match="digest"):
            generate_all(tiny_language_model, prompts, tmp_path, {"halved": arms["halved"]})
    finally:
        head.weight = weight


@pytest.mark.parametrize("sequences_per_batch", [1, 7, 1000])
def test_continuations_do_not_depend_on_the_batch(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    workspace: Workspace,
    sequences_per_batch: int,
) -> None:
    """Batch size and order of the prompts change nothing."""
    expected = generate(tiny_language_model, prompts, workspace)
    turned = prompts.take(list(reversed(range(len(prompts)))))
    found = generate(
        tiny_language_model, turned, workspace, sequences_per_batch=sequences_per_batch
    )
    assert found == expected


def test_streams_and_samples_differ(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """Samples of a prompt, and the A/A arm's stream, have random numbers of their own."""
    main = generate(tiny_language_model, prompts, workspace)
    again = generate(tiny_language_model, prompts, workspace, stream="again")
    assert [row["token_ids"] for row in main] != [row["token_ids"] for row in again]
    first = [row["token_ids"] for row in main if row["prompt_id"] == "p0"]
    assert len({tuple(tokens) for tokens in first}) > 1


def test_an_empty_prompt_is_continued_from_the_start_token(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """No prompt is lost: accounting needs every one."""
    rows = [
        row for row in generate(tiny_language_model, prompts, workspace) if row["prompt_id"] == "p8"
    ]
    assert [row["prompt_token_ids"] for row in rows] == [
        [tiny_language_model.tokenizer.bos_token_id]
    ] * 3


def test_long_prompts_keep_their_end_and_leave_room(
    tiny_language_model: LanguageModel, workspace: Workspace
) -> None:
    """The model's positions are never exceeded, and the words next to the continuation stay."""
    text = "The green garden was open. " * 40
    table = pa.Table.from_pylist(
        [{"prompt_id": "p", "part": "evaluation", "language": "en", "prompt": text}],
        schema=schemas.PROMPTS,
    )
    row = generate(tiny_language_model, table, workspace)[0]
    whole = tiny_language_model.tokenizer(text)["input_ids"]
    assert len(row["prompt_token_ids"]) == 64 - SETTINGS.n_tokens
    assert whole[-len(row["prompt_token_ids"]) :] == row["prompt_token_ids"]


def test_a_long_prompt_keeps_the_bos_token_its_tokenizer_puts_first(
    tiny_language_model: LanguageModel,
) -> None:
    """Llama and Gemma are trained to have it: what is cut off is the text after it."""
    tokenizer = copy.deepcopy(tiny_language_model.tokenizer)
    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start[0]} $A", special_tokens=[start]
    )
    language_model = replace(tiny_language_model, tokenizer=tokenizer)
    text = "The green garden was open."
    table = pa.Table.from_pylist(
        [{"prompt_id": "p", "part": "evaluation", "language": "en", "prompt": text}],
        schema=schemas.PROMPTS,
    )
    whole = tokenizer(text)["input_ids"]
    for limit in (1, 2, 4, 100):
        (found,) = encode_prompts(
            language_model, table, SETTINGS.model_copy(update={"max_prompt_tokens": limit})
        )
        n_kept = min(limit, len(whole)) - 1
        assert found.token_ids == [start[1], *whole[len(whole) - n_kept :]]


def test_the_end_is_not_drawn_before_the_least_number_of_tokens(
    tiny_language_model: LanguageModel, prompts: pa.Table, workspace: Workspace
) -> None:
    """An empty continuation cannot be scored, so by default there is at least one token."""
    end = tiny_language_model.tokenizer.eos_token_id
    head = tiny_language_model.head_module
    bias, head.bias = head.bias, torch.nn.Parameter(torch.zeros(head.out_features))
    with torch.no_grad():
        head.bias[end] = 100.0
    try:
        for least, expected in ((0, {0}), (1, {1}), (4, {4})):
            settings = SETTINGS.model_copy(update={"min_tokens": least})
            rows = generate(tiny_language_model, prompts, workspace, settings)
            assert {len(row["token_ids"]) for row in rows} == expected
    finally:
        head.bias = bias


def test_every_end_that_the_model_names_ends_a_continuation(
    tiny_language_model: LanguageModel,
    prompts: pa.Table,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a list, as chat models have; the noise is the same, so all before it is too."""
    settings = SETTINGS.model_copy(update={"min_tokens": 0})
    whole = [
        row["token_ids"] for row in generate(tiny_language_model, prompts, workspace, settings)
    ]
    turn_end = Counter(token for row in whole for token in row[1:]).most_common(1)[0][0]
    config = tiny_language_model.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", [config.eos_token_id, turn_end])
    cut = [row["token_ids"] for row in generate(tiny_language_model, prompts, workspace, settings)]
    assert cut == [list(takewhile(lambda token: token != turn_end, row)) for row in whole]
    assert cut != whole
    later = settings.model_copy(update={"min_tokens": 3})
    rows = generate(tiny_language_model, prompts, workspace, later)
    assert min(len(row["token_ids"]) for row in rows) >= 3
