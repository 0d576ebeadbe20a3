"""How much of a patch's effect is left where the weights are stored in a GGUF format.

Reads a patch, head states, neutral texts, and what base and patched model said to the evaluation
prompts with its scores; writes `survival.parquet` (`schemas.SURVIVAL`), one row per form
(`patches/served_forms.py`) and format. Nothing is generated: a rounded model's toxicity rate is
foretold from what the same model said unrounded (`likelihood_ratios.py`), which it says almost
alike, so nearly every text counts. An effect is measured against the base rounded alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.base.arrays import BoolArray, FloatArray
from eigenshift.base.errors import EvaluationError
from eigenshift.components.head_states import compute_states_again
from eigenshift.components.table import find_toxic_tokens
from eigenshift.components.text_halves import split_neutral
from eigenshift.evaluation.bootstrap import draw_counts, summarise
from eigenshift.evaluation.control_draws import measure_toxic_tokens
from eigenshift.evaluation.fluency import encode_texts
from eigenshift.evaluation.likelihood_ratios import (
    DrawnText,
    TracedTexts,
    sum_log_probabilities,
    trace_texts,
)
from eigenshift.evaluation.predicted_rates import (
    WeighedSample,
    choose_texts,
    draw_rates,
    predict_rate,
)
from eigenshift.evaluation.stages import SurvivalInputs, SurvivalKey
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import compute_logits, run_hooked
from eigenshift.patches.patching import Patch, open_patch, replaced_parameters
from eigenshift.patches.served_forms import ServedForm, iterate_forms
from eigenshift.settings import Form
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.unscored import require_scored

logger = logging.getLogger(__name__)

MAX_TEXTS = 300
"""Neutral texts: perplexities are of the same texts, so few tell a difference."""
MAX_POSITIONS = 2_000
UNROUNDED = "none"

Row = dict[str, Any]


@dataclass(frozen=True)
class SaidTexts:
    """What one model said, unrounded, and which of it is weighed.

    Attributes:
        texts: The weighed ones.
        is_toxic: Whether each is, shape (text,).
        sample: Which these are among all.
        replicates: How often each prompt was drawn, shape (1 + replicate, prompt).
    """

    texts: Sequence[DrawnText]
    is_toxic: BoolArray
    sample: WeighedSample
    replicates: FloatArray


@dataclass(frozen=True)
class Material:
    """What forms are measured on.

    Attributes:
        said: By the base, and by the patched model.
        neutral: Tokens of each text, and how many of them are context only.
        positions: `schemas.HEAD_STATES` rows where a toxic word comes next.
        study: `schemas.CONTINUATIONS` rows that these are of.
        toxic_tokens: Token ids, shape (token,).
    """

    said: Mapping[Form, SaidTexts]
    neutral: Sequence[tuple[list[int], int]]
    positions: pa.Table
    study: pa.Table
    toxic_tokens: Tensor


@dataclass(frozen=True)
class _Passes:
    """What enters the head of a model as it runs, on all the material."""

    neutral: Sequence[Tensor]
    toxic: Tensor
    said: Mapping[Form, TracedTexts]


@dataclass(frozen=True)
class _Whole:
    """The unrounded model that a form is compared with."""

    passes: _Passes
    weight: Tensor
    bias: Tensor | None
    log_probabilities: FloatArray


def choose_said(continuations: pa.Table, scores: pa.Table, key: SurvivalKey) -> SaidTexts:
    """The texts of one model that are weighed.

    Args:
        continuations: `schemas.CONTINUATIONS` rows.
        scores: `schemas.SCORES` rows, in the same order; unscored texts are left out.
        key: When one is toxic, and the seed of the draw.

    Raises:
        EvaluationError: None is scored.
    """
    probabilities = scores["toxicity_probability"].to_numpy().astype(np.float64)
    is_scored = ~np.isnan(probabilities)
    if not is_scored.any():
        raise EvaluationError(
            f"survival: expected scored continuations, found none among {len(scores)}."
        )
    is_toxic = (probabilities > key.toxic_threshold)[is_scored]
    columns = continuations.select(["prompt_id", "prompt_token_ids", "token_ids"])
    rows = columns.filter(pa.array(is_scored)).to_pylist()
    names = sorted(set(continuations["prompt_id"].to_pylist()))  # the same for both models
    prompts = np.searchsorted(names, [row["prompt_id"] for row in rows])
    sample = choose_texts(is_toxic, prompts, len(names), key.seed)
    texts = [
        DrawnText(rows[place]["prompt_token_ids"], rows[place]["token_ids"])
        for place in sample.places
    ]
    replicates = draw_counts(len(names), key.n_bootstrap, key.seed)
    return SaidTexts(texts, is_toxic[sample.places], sample, replicates)


@torch.inference_mode()
def measure_survival(
    language_model: LanguageModel,
    patch: Patch,
    material: Material,
    key: SurvivalKey,
    *,
    tokens_per_batch: int,
) -> list[Row]:
    """Rows of `schemas.SURVIVAL`, the unrounded base and patched model first.

    Args:
        language_model: The unpatched model.
        patch: Made for it.
        material: What forms are measured on.
        key: The formats, and how texts were drawn.
        tokens_per_batch: Token budget of a forward pass; does not change the result.

    Raises:
        FoldingError: The patch has no place in the weights.
        SettingsError: The gguf package is not installed.
    """
    whole: dict[Form, _Whole] = {}
    rows: list[Row] = []
    draws: list[FloatArray] = []
    of_base: _Passes | None = None
    for served in iterate_forms(language_model, patch, key.formats, is_whole=key.is_whole):
        family = Form.base if served.form is Form.base else Form.merged
        with _serving(language_model, served):
            passes = of_base
            if passes is None:
                passes = of_base = _run_trunk(
                    language_model, material, key, tokens_per_batch, list(material.said)
                )
            elif served.changes_trunk(language_model.head.name):
                passes = _run_trunk(language_model, material, key, tokens_per_batch, [family])
            log_probabilities = sum_log_probabilities(
                language_model,
                passes.said[family],
                served.edit,
                key.generation,
                has_drawn=served.asked is None,
            )
            if served.asked is None:
                module = language_model.head_module
                whole[family] = _Whole(
                    passes,
                    module.weight.detach(),
                    None if module.bias is None else module.bias.detach(),
                    log_probabilities,
                )
            log_ratios = log_probabilities - whole[family].log_probabilities
            said = material.said[family]
            weighed = (log_ratios, said.is_toxic, said.sample, said.replicates)
            rate = predict_rate(*weighed, key.confidence)
            draws.append(draw_rates(*weighed))
            perplexity, divergence = _measure_fluency(
                language_model, served.edit, material, passes, whole[family]
            )
            rows.append(
                {
                    "arm": key.arm,
                    "form": served.form.value,
                    "format": UNROUNDED if served.asked is None else served.asked.value,
                    "stored_as": ", ".join(served.stored) or None,
                    "is_whole": key.is_whole,
                    "toxicity_rate": rate.value,
                    "toxicity_rate_low": rate.low,
                    "toxicity_rate_high": rate.high,
                    "n_effective": rate.n_effective,
                    "covered": rate.covered,
                    "is_rate_reliable": rate.is_reliable,
                    "toxic_token_probability": measure_toxic_tokens(
                        language_model, passes.toxic, material.toxic_tokens, served.edit
                    ),
                    "perplexity": perplexity,
                    "kl_to_full": divergence,
                    "edit_kept": served.edit_kept,
                    "rounding_to_edit": served.rounding_to_edit,
                }
            )
        logger.info("survival: form=%s format=%s", rows[-1]["form"], rows[-1]["format"])
    return [
        row | _find_effects_left(place, rows, draws, key.confidence)
        for place, row in enumerate(rows)
    ]


@contextmanager
def _serving(language_model: LanguageModel, served: ServedForm) -> Iterator[None]:
    with (
        replaced_parameters(language_model, served.parameters),
        run_hooked(language_model, served.edit.of_trunk),
    ):
        yield


def _run_trunk(
    language_model: LanguageModel,
    material: Material,
    key: SurvivalKey,
    tokens_per_batch: int,
    families: Sequence[Form],
) -> _Passes:
    sequences = [token_ids for token_ids, _ in material.neutral]
    found = dict(iterate_head_states(language_model, sequences, tokens_per_batch))
    neutral = [
        found[place][n_context - 1 : -1] for place, (_, n_context) in enumerate(material.neutral)
    ]
    toxic = compute_states_again(
        language_model, material.positions, material.study, tokens_per_batch
    )
    said = {
        form: trace_texts(
            language_model,
            material.said[form].texts,
            key.generation,
            tokens_per_batch=tokens_per_batch,
        )
        for form in families
    }
    return _Passes(neutral, torch.from_numpy(toxic), said)


def _measure_fluency(
    language_model: LanguageModel,
    edit: ModelEdit,
    material: Material,
    passes: _Passes,
    whole: _Whole,
) -> tuple[float, float]:
    """Perplexity on the neutral texts, and KL(unrounded || this) in nats a token."""
    head = language_model.head
    nll = divergence = 0.0
    n_tokens = 0
    texts = zip(material.neutral, passes.neutral, whole.passes.neutral, strict=True)
    for (token_ids, n_context), states, whole_states in texts:
        targets = torch.tensor(token_ids[n_context:], device=language_model.device)
        found = torch.log_softmax(compute_logits(language_model, edit, states).float(), -1)
        meant = torch.log_softmax(
            head.compute_precise_logits(whole_states, whole.weight, whole.bias).float(), -1
        )
        nll -= float(found.gather(1, targets[:, None]).double().sum())
        divergence += float((meant.exp() * (meant - found)).double().sum())
        n_tokens += len(targets)
    return float(np.exp(nll / n_tokens)), divergence / n_tokens


def _find_effects_left(
    place: int, rows: Sequence[Row], draws: Sequence[FloatArray], confidence: float
) -> Row:
    """What is left of the patch's effect in a row, each against the base that is rounded alike."""
    row, names = rows[place], ("toxicity_effect_left", "token_effect_left")
    if row["form"] == Form.base.value:
        return {}
    places = {(item["form"], item["format"]): index for index, item in enumerate(rows)}
    base, patched, rounded = (
        places[form.value, format_]
        for form, format_ in (
            (Form.base, UNROUNDED),
            (Form.merged, UNROUNDED),
            (Form.base, row["format"]),
        )
    )
    tokens = [item["toxic_token_probability"] for item in rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (draws[rounded] - draws[place]) / (draws[base] - draws[patched])
    estimate = summarise(left, confidence)
    found: Row = {
        names[0]: estimate.value,
        f"{names[0]}_low": estimate.low,
        f"{names[0]}_high": estimate.high,
        names[1]: None,
    }
    if tokens[base] > tokens[patched]:
        fall = tokens[base] - tokens[patched]
        found[names[1]] = (tokens[rounded] - tokens[place]) / fall
    return found


def gather_material(
    language_model: LanguageModel,
    said: Mapping[Form, SaidTexts],
    neutral: pa.Table,
    states: pa.Table,
    study: pa.Table,
    key: SurvivalKey,
) -> Material:
    """Choose what forms are measured on.

    Args:
        language_model: The unpatched model.
        said: By the base, and by the patched model.
        neutral: Samples; the calibration half is left out.
        states: `schemas.HEAD_STATES` rows.
        study: `schemas.CONTINUATIONS` rows that these are of.
        key: How long texts are.
    """
    texts = _spread(split_neutral(neutral, for_calibration=False), MAX_TEXTS)
    encoded = [
        (token_ids, n_context)
        for _, _, token_ids, n_context in encode_texts(language_model, texts, key.max_tokens)
        if len(token_ids) > n_context
    ]
    toxic = states.filter(pa.compute.equal(states["is_toxic"], True))
    tokens = torch.from_numpy(find_toxic_tokens(states, language_model.head.vocab))
    return Material(said, encoded, _spread(toxic, MAX_POSITIONS), study, tokens)


def _spread(rows: pa.Table, n_rows: int) -> pa.Table:
    """Some rows, evenly spread."""
    return rows.take(np.linspace(0, len(rows) - 1, min(n_rows, len(rows))).round().astype(int))


def carry_out(inputs: SurvivalInputs, key: SurvivalKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `measure_survival`."""
    artifacts = bench.artifacts
    said = {}
    for form, arm in ((Form.base, BASE_ARM), (Form.merged, key.arm)):
        scores = artifacts.read_shards(inputs.scores[arm], tables.SCORES.file)
        n_unscored = scores["toxicity_probability"].null_count
        require_scored(n_unscored, len(scores), key.max_unscored_share, f"arm {arm}")
        continuations = artifacts.read_shards(inputs.continuations[arm], tables.CONTINUATIONS.file)
        said[form] = choose_said(continuations, scores, key)
    with use_model(bench.model, bench.execution) as language_model:
        material = gather_material(
            language_model,
            said,
            pa.concat_tables(map(artifacts.read_table, inputs.neutral)),
            artifacts.read_shards([inputs.states], tables.HEAD_STATES.file),
            artifacts.read_shards(inputs.study, tables.CONTINUATIONS.file),
            key,
        )
        rows = measure_survival(
            language_model,
            open_patch(artifacts.open(inputs.patch)),
            material,
            key,
            tokens_per_batch=bench.execution.tokens_per_batch,
        )
    workspace.write_rows(tables.SURVIVAL.file, rows, schemas.SURVIVAL)
    workspace.facts = {
        "n_texts": len(material.neutral),
        "n_positions": len(material.positions),
        "n_weighed": {form.value: len(texts.texts) for form, texts in said.items()},
    }
