"""Models that judge, as Hugging Face has them: a folder, a URL or a hub id, safetensors only.

What is made of a model's output is `text_classifier.py`'s and `judge.py`'s.
"""

from __future__ import annotations

from typing import Any

import torch

from eigenshift.base.errors import ModelError, ScorerError
from eigenshift.model.files import ModelIdentity, identify_model
from eigenshift.settings import ModelSettings, PlainScorerSettings


def identify_classifier(settings: PlainScorerSettings) -> ModelIdentity:
    """Find and digest the classifier's files.

    Raises:
        ScorerError: They are missing, incomplete or pickled.
    """
    try:
        return identify_model(ModelSettings(id=settings.model or "", revision=settings.revision))
    except ModelError as error:
        message = str(error).replace("model.id", "scorer.model")
        raise ScorerError(f"scorer {settings.name}: {message}") from error


def load_pretrained(
    settings: PlainScorerSettings, auto_class: str, what: str, dtype: str = "float32"
) -> tuple[Any, Any]:
    """Load a scorer's model and tokenizer; every weight must come from the files.

    Args:
        settings: Of the scorer.
        auto_class: Name of transformers' class for what is expected.
        what: The same in words.
        dtype: Precision of the forward pass.

    Raises:
        ScorerError: It cannot be loaded, or a weight is not in the files.
    """
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = str(identify_classifier(settings).folder)
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise ScorerError(
            f"scorer {settings.name}: expected {what} with its tokenizer in {settings.model}, "
            f"found {type(error).__name__}. Check scorer.model; code shipped with a model is "
            "never run."
        ) from error
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:
        raise ScorerError(
            f"scorer {settings.name}: expected weights for all of {type(model).__name__} in "
            f"{settings.model}, found none for {', '.join(missing[:3])}. They would be random "
            f"numbers: this is not {what} that was trained. Choose another scorer.model."
        )
    return model, tokenizer
