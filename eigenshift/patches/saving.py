"""Write a patched model for another program to load; the model in memory is the base again after.

Needs the model in memory. Exports, which do not, and what becomes of configuration and tokenizer
there, are `exporting/merged.py`'s.
"""

from __future__ import annotations

from pathlib import Path

from eigenshift.model.loading import LanguageModel
from eigenshift.patches.patching import Patch, apply_patch, untie_head
from eigenshift.store.output_folder import check_space


def save_patched_model(language_model: LanguageModel, patch: Patch, folder: Path) -> None:
    """Write weights and configuration as transformers saves them, the tokenizer too.

    A head that was the input embedding gets a tensor of its own, and the configuration says so.

    Args:
        language_model: The base; its lock is held meanwhile.
        patch: What changes.
        folder: Receives the files.

    Raises:
        ComponentError: The patch was made for another model.
        FoldingError: It has no place in the weights.
        SettingsError: There is too little space.
    """
    model = language_model.model
    n_bytes = sum(value.nbytes for value in model.state_dict().values())
    check_space(folder, n_bytes, "name a larger disk by TMPDIR")
    with language_model.lock:
        applied = apply_patch(language_model, patch)
        try:
            if not language_model.head.is_tied:
                untie_head(model)  # a configuration may say otherwise than the files
            model.save_pretrained(folder)
        finally:
            applied.undo()
    language_model.tokenizer.save_pretrained(folder)
