"""Perplexity, divergence and changed predictions on neutral text, for all arms in one pass.

Reads neutral samples; writes `fluency.parquet` (`schemas.FLUENCY`), one row per arm and text. The
trunk runs once per text for all arms that differ in the head only, whose logits come from the same
final states, and once more for each arm that changes the trunk. Intervals and ratios are
`comparison.py`'s.

Convention: the text is preceded by the tokenizer's BOS token if it has one; otherwise its first
token is context and is not predicted. Texts are right-padded and truncated to `max_tokens`; sums
run over real tokens only, in float64, so they do not depend on batch size or padding. Texts that
calibrated the choice of components (`calibration.py`) are the caller's to leave out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.components.text_halves import split_neutral
from eigenshift.evaluation.stages import (
    FluencyInputs,
    FluencyKey,
    IndomainInputs,
    IndomainKey,
)
from eigenshift.model.batching import plan_batches, run_in_batches
from eigenshift.model.encoding import encode_text
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import compute_logits, run_hooked
from eigenshift.patches.patching import Patch, check_base, open_patch
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.workspace import Workspace

POSITIONS_PER_BLOCK = 256
_Encoded = tuple[str, str, list[int], int]
"""Id of a text, its language (or kind), its tokens, and how many of them are context only."""


def measure_fluency(
    language_model: LanguageModel,
    patches: Mapping[str, Patch | None],
    texts: Sequence[_Encoded],
    *,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Measure every arm on every text.

    Args:
        language_model: The unpatched model.
        patches: Arm name -> patch; None is the base. "base" is always measured.
        texts: Encoded; those with nothing to predict are counted.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives the table.
    """
    edits: dict[str, ModelEdit] = {BASE_ARM: ModelEdit()}
    for arm, patch in patches.items():
        if patch is not None:
            check_base(language_model, patch)
        edits[arm] = ModelEdit() if patch is None else patch.edit
    encoded = [item for item in texts if len(item[2]) > item[3]]
    rows: list[dict[str, Any]] = []
    lengths = [len(token_ids) for _, _, token_ids, _ in encoded]

    def measure(batch: list[int]) -> list[dict[str, Any]]:
        texts_of_batch = [encoded[place] for place in batch]
        return list(_measure_batch(language_model, edits, texts_of_batch, tokens_per_batch))

    key = (language_model.digest, str(language_model.device), "fluency")
    for _, found in run_in_batches(key, lengths, tokens_per_batch, plan_batches, measure):
        rows.extend(found)
    rows.sort(key=lambda row: (row["arm"], row["sample_id"]))
    workspace.write_rows(tables.FLUENCY.file, rows, schemas.FLUENCY)
    workspace.facts = {
        "n_texts": len(encoded),
        "n_too_short": len(texts) - len(encoded),
        "n_tokens": sum(len(token_ids) - n_context for _, _, token_ids, n_context in encoded),
    }


def encode_texts(language_model: LanguageModel, texts: pa.Table, max_tokens: int) -> list[_Encoded]:
    """Samples as tokens; longer texts are truncated."""
    return [
        (
            row["sample_id"],
            row["language"],
            *encode_text(language_model, row["text"], max_tokens),
        )
        for row in texts.select(["sample_id", "language", "text"]).to_pylist()
    ]


@torch.inference_mode()
def _measure_batch(
    language_model: LanguageModel,
    edits: Mapping[str, ModelEdit],
    texts: Sequence[_Encoded],
    tokens_per_batch: int,
) -> Iterator[dict[str, Any]]:
    """Rows of all arms; the trunk runs once, and once more for each arm that changes it."""
    sequences = [token_ids for _, _, token_ids, _ in texts]
    states_of: dict[str, dict[int, Tensor]] = {}
    for arm, edit in edits.items():
        if arm == BASE_ARM or edit.changes_trunk:
            with run_hooked(language_model, edit.of_trunk):
                states_of[arm] = dict(
                    iterate_head_states(language_model, sequences, tokens_per_batch)
                )
    for place, (sample_id, language, token_ids, n_context) in enumerate(texts):
        targets = torch.tensor(token_ids[n_context:], device=language_model.device)
        states = {arm: found[place][n_context - 1 : -1] for arm, found in states_of.items()}
        for arm, sums in _compare_text(language_model, edits, states, targets).items():
            yield {"arm": arm, "sample_id": sample_id, "language": language, **sums}


def _compare_text(
    language_model: LanguageModel,
    edits: Mapping[str, ModelEdit],
    states: Mapping[str, Tensor],
    targets: Tensor,
) -> dict[str, dict[str, float | int]]:
    """Sums over one text by arm: nll and KL(base || arm) in nats, changed argmax tokens.

    The base's distributions are computed once for all arms.

    Args:
        language_model: The unpatched model.
        edits: Arm -> what it changes.
        states: What enters the head, before an edit of the head, shape (position, hidden): of the
            base and of arms that change the trunk.
        targets: Tokens that follow, shape (position,).
    """
    sums: dict[str, dict[str, float | int]] = {
        arm: {"n_tokens": len(targets), "nll": 0.0, "kl_to_base": 0.0, "n_changed_argmax": 0}
        for arm in edits
    }
    for first in range(0, len(targets), POSITIONS_PER_BLOCK):
        block = slice(first, first + POSITIONS_PER_BLOCK)
        base = _find_log_probabilities(language_model, ModelEdit(), states[BASE_ARM][block])
        probabilities, choices = base.exp(), base.argmax(1)
        for arm, edit in edits.items():
            found, here = base, sums[arm]
            if edit.changes_head or edit.changes_trunk:
                entering = states[arm if edit.changes_trunk else BASE_ARM][block]
                found = _find_log_probabilities(language_model, edit, entering)
                here["kl_to_base"] += float((probabilities * (base - found)).double().sum())
                here["n_changed_argmax"] += int((found.argmax(1) != choices).sum())
            here["nll"] -= float(found.gather(1, targets[block, None]).double().sum())
    return sums


def _find_log_probabilities(
    language_model: LanguageModel, edit: ModelEdit, states: Tensor
) -> Tensor:
    return torch.log_softmax(compute_logits(language_model, edit, states).float(), dim=-1)


def carry_out(inputs: FluencyInputs, key: FluencyKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `measure_fluency`: all arms on the evaluation part of one shard."""
    texts = split_neutral(bench.artifacts.read_table(inputs.texts), for_calibration=False)
    with use_model(bench.model, bench.execution) as language_model:
        measure_fluency(
            language_model,
            _open_patches(bench, inputs.patches),
            encode_texts(language_model, texts.slice(0, key.n_texts), key.max_tokens),
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )


def carry_out_indomain(
    inputs: IndomainInputs, key: IndomainKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `measure_indomain`: all arms on harmless texts of the domain.

    In the table the kind of text stands where a language would.
    """
    found = bench.artifacts.read_shards([inputs.texts], tables.HARMLESS_TEXTS.file)
    texts = [
        (row["text_id"], row["origin"], row["token_ids"], row["n_context"])
        for row in found.to_pylist()
    ]
    with use_model(bench.model, bench.execution) as language_model:
        measure_fluency(
            language_model,
            _open_patches(bench, inputs.patches),
            texts,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )


def _open_patches(
    bench: Bench, patches: Mapping[str, ArtifactReference | None]
) -> dict[str, Patch | None]:
    return {
        arm: None if patch is None else open_patch(bench.artifacts.open(patch))
        for arm, patch in patches.items()
    }
