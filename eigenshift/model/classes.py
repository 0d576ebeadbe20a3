"""Which of transformers' auto classes a causal language model is loaded by.

A wrapper around a language model and a vision tower (Qwen2.5-VL, LLaVA) has no causal class for its
configuration, but one for images and text; without an image it is a causal language model as any
other. Reads configurations only.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)


def choose_auto_class(config: Any) -> Any:
    """The auto class for a model's configuration; the causal one where there are both."""
    return AutoModelForImageTextToText if is_wrapper(config) else AutoModelForCausalLM


def is_wrapper(config: Any) -> bool:
    """Whether a configuration is of a wrapper that no causal class knows."""
    kind = type(config)
    is_known = kind in MODEL_FOR_CAUSAL_LM_MAPPING
    return not is_known and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
