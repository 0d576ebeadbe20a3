"""Every architecture the tests know, with all but its head on disk: the same, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.generation.decoding import HeadBranch, sample_batch
from eigenshift.generation.sampling import draw_keys
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.patching import Patch, make_patch, patched_model
from eigenshift.settings import SamplingSettings
from tests.support.architectures import (
    ARCHITECTURES,
    MORE,
    VOCAB,
    WRAPPERS,
    StubTokenizer,
    change_linears,
    damp_head,
    make_architecture,
    make_random_model,
)
from tests.support.divided_models import divide

ASKS_WEIGHTS = {"Llama4TextConfig", "ReformerConfig", "Idefics3Config"}
"""Their code asks a weight for its device; loading says which to keep."""
NOT_CAUSAL = {"PaliGemmaConfig"}
"""Refused undivided too."""
NAMES = [name for name in (*ARCHITECTURES, *MORE, *WRAPPERS) if name not in NOT_CAUSAL]
SEQUENCES = [
    [(3 * place + 7 * number + 4) % (VOCAB - 8) + 3 for place in range(length)]
    for number, length in enumerate((5, 9, 2, 12))
]
SAMPLING = SamplingSettings(n_samples=2, n_tokens=5)


def make_model(name: str) -> Any:
    """Seeded and random."""
    if name in ARCHITECTURES:
        return make_architecture(name)
    return make_random_model(name, (MORE | WRAPPERS)[name])


@torch.inference_mode()
def measure(language_model: LanguageModel, patch: Patch) -> dict[str, Any]:
    """States, continuations, and logits with a patch of the head and all writing layers."""
    keys = np.stack([draw_keys(0, "main", "p", sample, 5) for sample in range(4)])
    arms = [HeadBranch(ModelEdit(), keys)]
    found: dict[str, Any] = {
        "continuations": sample_batch(language_model, SEQUENCES[:2], arms, SAMPLING)
    }
    found |= {
        f"states {place}": states.clone()
        for place, states in iterate_head_states(language_model, SEQUENCES, 24)
    }
    with patched_model(language_model, patch):
        tokens = torch.tensor([SEQUENCES[3]])
        found["logits"] = language_model.model(input_ids=tokens, use_cache=False).logits
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_divided_model_is_the_undivided_one(name: str, tmp_path: Path) -> None:
    """Bit by bit."""
    whole = wrap_model(make_model(name), StubTokenizer(), model_id=name, digest=name)
    if name in ASKS_WEIGHTS:
        with pytest.raises(RuntimeError, match="meta"):
            divide(whole, tmp_path)
        return
    divided = divide(whole, tmp_path)
    linears = change_linears(whole, list(list_writers(whole.model))).linears
    edit = ModelEdit(damp_head(whole, 0.5).head, linears=linears)
    patches = [make_patch(one, edit, model_id="m", intervention="x") for one in (whole, divided)]
    assert patches[1].description == patches[0].description
    expected, found = (
        measure(one, patch) for one, patch in zip((whole, divided), patches, strict=True)
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        is_equal = torch.equal(found[key], value) if torch.is_tensor(value) else found[key] == value
        assert is_equal, key
