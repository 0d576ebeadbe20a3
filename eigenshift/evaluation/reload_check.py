"""Prove that the model one would export is the model that was measured.

A freshly loaded base is patched for good, saved, loaded back and compared with what the evaluation
ran: the digests of the parameters the patch names, the input embedding, and the logits on prompts
of the evaluation. Writes `reload_check.json`. Exports for users are `exporting.py`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenshift.evaluation.stages import RELOAD_NAME, ReloadInputs, ReloadKey
from eigenshift.model.divided import find_device, read_parameter
from eigenshift.model.encoding import encode_prompt
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, forget_models, load_model, wrap_model
from eigenshift.model.weight_loading import Arrangement, load_copy, save_weights
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.patching import Patch, apply_patch, open_patch, patched_model
from eigenshift.settings import ModelSettings, Placement
from eigenshift.stages.stage import Bench
from eigenshift.store.scratch import scratch_folder
from eigenshift.store.workspace import Workspace

N_PROMPTS = 4
MAX_TOKENS = 64
TOLERANCE = 1e-5
COARSE_TOLERANCE = 1e-2
"""Largest difference of logits relative to the largest logit, in float32 and in half precision."""


def check_reload(
    settings: ModelSettings,
    patch: Patch,
    prompts: Sequence[str],
    device: str | Placement,
    workspace: Workspace,
) -> None:
    """Patch, save, load back, compare; the verdict is in the facts.

    Args:
        settings: Of the base model.
        patch: As released.
        prompts: Texts the patched model was evaluated on; the first few are used.
        device: Where the evaluation ran.
        workspace: Receives `reload_check.json`.

    Raises:
        ModelError: The base cannot be loaded.
        ComponentError: The patch is for another base.
    """
    forget_models()  # the base must come from its files, and nobody else may see it patched
    offload_folder = None if isinstance(device, str) else device.offload_folder
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        try:
            saved = _save_patched(load_model(settings, device), patch, prompts, folder)
        finally:
            forget_models()  # room for the copy that is loaded back
        reloaded = load_copy(saved.arrangement, folder, offload_folder)
        with _run_beside(reloaded, saved.tokenizer, patch):
            facts = find_differences(
                patch, reloaded, saved.embedding, saved.logits, saved.sequences
            )
    workspace.write_json(RELOAD_NAME, facts)
    workspace.facts = facts


def find_differences(
    patch: Patch, model: Any, embedding: str, logits: Sequence[Tensor], sequences: list[list[int]]
) -> dict[str, Any]:
    """Compare a reloaded model with what was measured.

    Args:
        patch: What it should hold.
        model: The reloaded model.
        embedding: Digest of the base's input embedding.
        logits: What was measured, one tensor (position, vocab) per sequence.
        sequences: The token ids behind them.
    """
    names = {name for name, _ in model.named_parameters()}
    differing = [
        name
        for name, change in patch.description.tensors.items()
        if name not in names or digest_tensor(read_parameter(model, name)) != change.patched
    ]
    if _digest_embedding(model) != embedding:
        differing.append("the input embedding")
    found = _compute_logits(model, sequences)
    scale = max(float(item.abs().max()) for item in logits) or 1.0
    difference = max(
        float((one - other).abs().max()) for one, other in zip(found, logits, strict=True)
    )
    tolerance = TOLERANCE if model.dtype == torch.float32 else COARSE_TOLERANCE
    if not difference / scale <= tolerance:
        differing.append("the logits")
    return {
        "differing": differing,
        "logit_difference": difference / scale,
        "tolerance": tolerance,
        "n_sequences": len(sequences),
    }


@dataclass(frozen=True)
class _Saved:
    """What is left of a model that was measured with a patch, and saved with it."""

    sequences: list[list[int]]
    logits: list[Tensor]
    embedding: str
    arrangement: Arrangement
    tokenizer: Any


def _save_patched(
    language_model: LanguageModel, patch: Patch, prompts: Sequence[str], folder: str
) -> _Saved:
    model = language_model.model
    with language_model.lock:
        sequences = [
            encode_prompt(language_model, prompt, MAX_TOKENS) for prompt in prompts[:N_PROMPTS]
        ]
        embedding = _digest_embedding(model)
        with patched_model(language_model, patch):
            logits = _compute_logits(model, sequences)
        applied = apply_patch(language_model, _take_in_weights(patch))
        try:
            save_weights(model, Path(folder))
        finally:
            applied.undo()
    return _Saved(sequences, logits, embedding, Arrangement.of(model), language_model.tokenizer)


def _take_in_weights(patch: Patch) -> Patch:
    """The part of a patch that is in weights."""
    alone = patch.description.model_copy(update={"beside": ()})
    return replace(patch, description=alone, edit=patch.in_weights)


@contextmanager
def _run_beside(reloaded: Any, tokenizer: Any, patch: Patch) -> Iterator[None]:
    """The rest of it in force on a model that was loaded back, as an adapter would be."""
    if not patch.description.beside:
        yield
        return
    again = wrap_model(reloaded, tokenizer, model_id="reloaded", digest="reloaded")
    with run_hooked(again, patch.beside_weights):
        yield


def _digest_embedding(model: Any) -> str:
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    return digest_tensor(read_parameter(model, f"{name}.weight"))


@torch.inference_mode()
def _compute_logits(model: Any, sequences: list[list[int]]) -> list[Tensor]:
    """Logits of each sequence by itself, shape (position, vocab), float32 on the CPU."""
    device = find_device(model.get_output_embeddings())
    return [
        model(input_ids=torch.tensor([tokens], device=device), use_cache=False)
        .logits[0]
        .float()
        .cpu()
        for tokens in sequences
    ]


def carry_out(inputs: ReloadInputs, key: ReloadKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `check_reload`."""
    prompts = bench.artifacts.read_table(inputs.prompts)["prompt"].to_pylist()
    patch = open_patch(bench.artifacts.open(inputs.patch))
    check_reload(bench.model, patch, prompts, bench.execution, workspace)
