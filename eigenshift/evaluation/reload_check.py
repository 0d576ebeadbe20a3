"""Prove that the model one would export is the model that was measured.

A freshly loaded base is patched for good, saved, loaded back and compared with what the evaluation
ran: the digests of the parameters the patch names, the input embedding, and the logits on prompts
of the evaluation. Writes `reload_check.json`. Exports for users are `exporting.py`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigenshift.evaluation.stages import RELOAD_NAME, ReloadInputs, ReloadKey
from eigenshift.model.classes import choose_auto_class
from eigenshift.model.encoding import encode_prompt
from eigenshift.model.heads import digest_tensor
from eigenshift.model.layers import fuse_activations, keep_codes
from eigenshift.model.loading import (
    LanguageModel,
    forget_models,
    load_model,
    save_weights,
    wrap_model,
)
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.patching import Patch, apply_patch, open_patch, patched_model
from eigenshift.settings import ModelSettings
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
    device: str,
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
    language_model = load_model(settings, device)
    try:
        with language_model.lock:
            sequences = [
                encode_prompt(language_model, prompt, MAX_TOKENS) for prompt in prompts[:N_PROMPTS]
            ]
            facts = _compare_reloaded(language_model, patch, sequences)
    finally:
        forget_models()
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
    parameters: Mapping[str, Tensor] = dict(model.named_parameters())
    differing = [
        name
        for name, change in patch.description.tensors.items()
        if name not in parameters or digest_tensor(parameters[name]) != change.patched
    ]
    if digest_tensor(model.get_input_embeddings().weight) != embedding:
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


def _compare_reloaded(
    language_model: LanguageModel, patch: Patch, sequences: list[list[int]]
) -> dict[str, Any]:
    model = language_model.model
    embedding = digest_tensor(model.get_input_embeddings().weight)
    with patched_model(language_model, patch):
        logits = _compute_logits(model, sequences)
    dtype, device = model.dtype, language_model.device
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        applied = apply_patch(language_model, _take_in_weights(patch))
        try:
            save_weights(model, Path(folder))
        finally:
            applied.undo()
        reloaded = choose_auto_class(model.config).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        reloaded = reloaded.to(device).eval()
        fuse_activations(reloaded)  # as the measured model's are, which tells in low precision
        keep_codes(reloaded)
        if not patch.description.beside:
            return find_differences(patch, reloaded, embedding, logits, sequences)
        again = wrap_model(
            reloaded, language_model.tokenizer, model_id=language_model.id, digest="reloaded"
        )
        with run_hooked(again, patch.beside_weights):  # as an adapter would
            return find_differences(patch, reloaded, embedding, logits, sequences)


def _take_in_weights(patch: Patch) -> Patch:
    """The part of a patch that is in weights."""
    alone = patch.description.model_copy(update={"beside": ()})
    return replace(patch, description=alone, edit=patch.in_weights)


@torch.inference_mode()
def _compute_logits(model: Any, sequences: list[list[int]]) -> list[Tensor]:
    """Logits of each sequence by itself, shape (position, vocab), float32 on the CPU."""
    return [
        model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
        .logits[0]
        .float()
        .cpu()
        for tokens in sequences
    ]


def carry_out(inputs: ReloadInputs, key: ReloadKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `check_reload`."""
    prompts = bench.artifacts.read_table(inputs.prompts)["prompt"].to_pylist()
    patch = open_patch(bench.artifacts.open(inputs.patch))
    check_reload(bench.model, patch, prompts, bench.execution.device, workspace)
