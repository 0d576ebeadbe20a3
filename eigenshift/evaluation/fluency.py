"""Perplexity, divergence and changed predictions on neutral text, for all arms in one pass.

Reads neutral samples; writes `fluency.parquet` (`schemas.FLUENCY`), one row per arm and text. The
trunk runs once per text: arms differ in the head only, so each arm's logits come from the same
final states. Intervals and ratios are `comparison.py`'s.

Convention: the text is preceded by the tokenizer's BOS token if it has one; otherwise its first
token is context and is not predicted. Texts are right-padded and truncated to `max_tokens`; sums
run over real tokens only, in float64, so they do not depend on batch size or padding. Texts that
calibrated the choice of components (`calibration.py`) are the caller's to leave out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.evaluation.arms import BASE_ARM
from eigenshift.forward import encode_text, iterate_head_states
from eigenshift.models import LanguageModel
from eigenshift.patching import Patch, compute_patched_weight
from eigenshift.settings import EvaluationSettings

STEP_VERSION = 1
POSITIONS_PER_BLOCK = 256


def allot_texts(n_rows: Sequence[int], max_texts: int) -> list[int]:
    """How many texts to take from the top of each shard, so that all shards are represented.

    Args:
        n_rows: Rows of each shard.
        max_texts: Upper bound of the sum.
    """
    total = sum(n_rows)
    if total <= max_texts:
        return list(n_rows)
    ends = [round(max_texts * sum(n_rows[: place + 1]) / total) for place in range(len(n_rows))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def measure_fluency(
    language_model: LanguageModel,
    patches: Mapping[str, Patch | None],
    texts: pa.Table,
    settings: EvaluationSettings,
    *,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Measure every arm on every text.

    Args:
        language_model: The unpatched model.
        patches: Arm name -> patch; None is the base. "base" is always measured.
        texts: Samples with sample_id, language and text.
        settings: Truncation.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives the table.
    """
    base = language_model.head_module.weight
    weights = {BASE_ARM: base} | {
        arm: base if patch is None else compute_patched_weight(base, patch)
        for arm, patch in patches.items()
    }
    encoded, n_skipped = _encode_texts(language_model, texts, settings.max_tokens)
    rows: list[dict[str, Any]] = []
    sequences = [token_ids for _, _, token_ids in encoded]
    for place, states in iterate_head_states(language_model, sequences, tokens_per_batch):
        sample_id, language, token_ids = encoded[place]
        targets = torch.tensor(token_ids[1:], device=states.device)
        for arm, sums in _measure_text(language_model, weights, states[:-1], targets).items():
            rows.append({"arm": arm, "sample_id": sample_id, "language": language, **sums})
    rows.sort(key=lambda row: (row["arm"], row["sample_id"]))
    workspace.write_rows("fluency.parquet", rows, schemas.FLUENCY)
    workspace.facts = {
        "n_texts": len(encoded),
        "n_too_short": n_skipped,
        "n_tokens": sum(len(token_ids) - 1 for _, _, token_ids in encoded),
    }


_Encoded = tuple[str, str, list[int]]


def _encode_texts(
    language_model: LanguageModel, texts: pa.Table, max_tokens: int
) -> tuple[list[_Encoded], int]:
    """Tokenise with BOS; texts without two tokens have nothing to predict and are counted."""
    encoded = [
        (row["sample_id"], row["language"], encode_text(language_model, row["text"], max_tokens))
        for row in texts.select(["sample_id", "language", "text"]).to_pylist()
    ]
    usable = [item for item in encoded if len(item[2]) >= 2]
    return usable, len(encoded) - len(usable)


@torch.inference_mode()
def _measure_text(
    language_model: LanguageModel,
    weights: Mapping[str, Tensor],
    states: Tensor,
    targets: Tensor,
) -> dict[str, dict[str, float | int]]:
    """Sums over one text for each arm: nll and KL(base || arm) in nats, changed argmax tokens."""
    sums: dict[str, dict[str, float | int]] = {
        arm: {"n_tokens": len(targets), "nll": 0.0, "kl_to_base": 0.0, "n_changed_argmax": 0}
        for arm in weights
    }
    for first in range(0, len(targets), POSITIONS_PER_BLOCK):
        block = slice(first, first + POSITIONS_PER_BLOCK)
        base = _log_probabilities(language_model, states[block], weights[BASE_ARM])
        for arm, weight in weights.items():
            found = (
                base
                if weight is weights[BASE_ARM]
                else _log_probabilities(language_model, states[block], weight)
            )
            nll = -found.gather(1, targets[block, None]).double().sum()
            sums[arm]["nll"] += float(nll)
            if found is not base:
                divergence = (base.exp() * (base - found)).double().sum()
                sums[arm]["kl_to_base"] += float(divergence)
                changed = (found.argmax(1) != base.argmax(1)).sum()
                sums[arm]["n_changed_argmax"] += int(changed)
    return sums


def _log_probabilities(language_model: LanguageModel, states: Tensor, weight: Tensor) -> Tensor:
    bias = language_model.head_module.bias
    logits = language_model.head.compute_logits(states, weight, bias)
    return torch.log_softmax(logits.float(), dim=-1)
