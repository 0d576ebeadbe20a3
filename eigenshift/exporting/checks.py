"""Whether a merged export is what was measured: by its files, or by loading it as a user would.

`check_files` reads both checkpoints a block at a time and needs no memory to speak of;
`check_reloaded` runs the export beside the base with the patch, one after the other. Both raise
and change nothing; whoever called removes the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from eigenshift.base.errors import ModelError
from eigenshift.exporting.base_files import PatchedBase
from eigenshift.model.classes import choose_auto_class
from eigenshift.model.heads import digest_blocks, digest_tensor
from eigenshift.model.layers import fuse_activations, keep_codes
from eigenshift.model.loading import LanguageModel
from eigenshift.model.parameter_names import build_skeleton, find_embedding_name, match_parameters
from eigenshift.model.weight_files import StoredTensor, open_checkpoint
from eigenshift.patches.folding import iterate_row_blocks
from eigenshift.patches.patching import Patch, patched_model

N_CHECKED_SEQUENCES = 3
N_CHECKED_TOKENS = 12
LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
COARSE_TOLERANCE = 2e-2
RAW_BYTES_PER_READ = 8 << 20


@dataclass(frozen=True)
class Measured:
    """What the base with the patch gives, to be found again in the export.

    Attributes:
        sequences: Tokens, shape (batch, position).
        logits: Shape (batch, position, vocab).
        embedding: Digest of the input embedding.
        dtype: Of the head.
    """

    sequences: Tensor
    logits: Tensor
    embedding: str
    dtype: torch.dtype


def measure_patched(language_model: LanguageModel, patch: Patch) -> Measured:
    """Run the base with the patch, the way a run does, over some token sequences."""
    sequences = choose_sequences(language_model.head.vocab, patch)
    with patched_model(language_model, patch):
        logits = compute_logits(language_model.model, sequences)
    return Measured(
        sequences, logits, _digest_embedding(language_model.model), language_model.head.dtype
    )


def choose_sequences(vocab: int, patch: Patch) -> Tensor:
    """Some token sequences, the same for the same patch, shape (batch, position)."""
    seed = int(patch.description.base_digest[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (N_CHECKED_SEQUENCES, N_CHECKED_TOKENS), generator=generator)


@torch.inference_mode()
def compute_logits(model: Any, sequences: Tensor) -> Tensor:
    """Logits of token sequences, shape (batch, position, vocab)."""
    logits: Tensor = model(input_ids=sequences, use_cache=False).logits
    return logits.clone()


def check_reloaded(
    folder: Path, measured: Measured, written: Mapping[str, str], *, unties: bool
) -> None:
    """Load an export as a user would and compare parameters, embedding, logits, configuration.

    Args:
        folder: The export.
        measured: What the base with the patch gave.
        written: Parameter -> digest as written.
        unties: The head must be its own.

    Raises:
        ModelError: Something differs.
    """
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    model = (
        choose_auto_class(config)
        .from_pretrained(str(folder), use_safetensors=True, trust_remote_code=False)
        .eval()
    )
    fuse_activations(model)  # as the base's are, which tells in low precision
    keep_codes(model)
    is_equal = {  # before it runs: RWKV's weights are not the same afterwards
        name: digest_tensor(model.get_parameter(name)) == digest for name, digest in written.items()
    }
    found = compute_logits(model, measured.sequences)
    tolerance = LOGIT_TOLERANCE.get(measured.dtype, COARSE_TOLERANCE)
    scale = measured.logits.float().abs().max().clamp_min(1e-6)
    difference = float((found.float() - measured.logits.float()).abs().max() / scale)
    is_equal["the input embedding"] = _digest_embedding(model) == measured.embedding
    is_equal["the logits"] = difference <= tolerance
    if unties:
        # transformers notices two different tensors by itself; other tools trust the setting, which
        # wrappers have at the top, in their language model's part, or in both
        parts = (model.config, model.config.get_text_config())
        tied = any(getattr(part, "tie_word_embeddings", False) for part in parts)
        is_equal["tie_word_embeddings"] = not tied
    _refuse(
        type(model).__name__,
        [name for name, is_fine in is_equal.items() if not is_fine],
        f"logits by {difference:.1e}",
    )


def check_files(base: PatchedBase, folder: Path, written: Mapping[str, str]) -> None:
    """Compare an export's files with the base's: changed tensors by digest, all others by bytes.

    Args:
        base: The base's files and the patch.
        folder: The export.
        written: Parameter -> digest as written.

    Raises:
        ModelError: Something differs, or transformers would not load it as it is meant.
    """
    export, skeleton = open_checkpoint(folder), build_skeleton(folder)
    keys = match_parameters(skeleton, export.tensors)
    differing = []
    for name, digest in written.items():
        stored = export.tensors.get(keys.get(name, ""))
        if stored is None or _digest_stored(stored) != digest:
            differing.append(name)
    changed = {parameter.key for parameter in base.parameters.values()}
    if set(export.tensors) != {*base.checkpoint.tensors, *changed}:
        differing.append("the list of tensors")
    for key, stored in base.checkpoint.tensors.items():
        other = export.tensors.get(key)
        if key not in changed and (other is None or _differ(stored, other)):
            differing.append(key)
    if base.unties and find_embedding_name(skeleton) is not None:
        differing.append("tie_word_embeddings")
    _refuse(type(skeleton).__name__, differing, "by their bytes")


def _refuse(place: str, differing: list[str], how: str) -> None:
    if differing:
        raise ModelError(
            f"{place}: expected the exported model to load back as it was, found that "
            f"{' and '.join(differing[:5])} differ ({how}). transformers ties or rewrites weights "
            "of this architecture on loading, or the disk is faulty. Nothing was exported; use "
            "--format patch."
        )


def _digest_embedding(model: Any) -> str:
    return digest_tensor(model.get_input_embeddings().weight)


def _digest_stored(stored: StoredTensor) -> str:
    blocks = (stored.read_rows(first, n) for first, n in iterate_row_blocks(stored.shape))
    return digest_blocks(stored.dtype, stored.shape, blocks)


def _differ(first: StoredTensor, second: StoredTensor) -> bool:
    if (first.type_name, first.shape) != (second.type_name, second.shape):
        return True
    return _digest_bytes(first) != _digest_bytes(second)


def _digest_bytes(stored: StoredTensor) -> str:
    digest, left = hashlib.sha256(), stored.n_bytes
    with stored.path.open("rb") as file:
        file.seek(stored.first_byte)
        while left:
            block = file.read(min(left, RAW_BYTES_PER_READ))
            if not block:
                return ""
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
