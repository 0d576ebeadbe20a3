"""Which of transformers' auto classes a causal language model is loaded by.

A wrapper around a language model and a vision tower (Qwen2.5-VL, LLaVA) has a class for images and
text; without an image it is a causal language model as any other. A few have a class for text alone
besides, which reads the wrapper's configuration in part (Qwen3.5's takes a tied head for one of its
own), so what the configuration names goes first. Reads configurations only.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)


def choose_auto_class(config: Any) -> Any:
    """The auto class for a model's configuration: `AutoModelForCausalLM` or that of wrappers."""
    return AutoModelForImageTextToText if _is_wrapper(config) else AutoModelForCausalLM


def find_class(config: Any, *, is_causal: bool) -> type[Any] | None:
    """The class a model will have, None if transformers has none that fits.

    Args:
        config: Of the model.
        is_causal: It is to generate text; otherwise its trunk is enough.
    """
    mapping = MODEL_MAPPING
    if is_causal:
        is_wrapper = _is_wrapper(config)
        mapping = (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if is_wrapper else MODEL_FOR_CAUSAL_LM_MAPPING
        )
    if type(config) not in mapping:
        return None
    found: Any = mapping[type(config)]
    chosen: type[Any] = found[0] if isinstance(found, tuple) else found
    return chosen


def _is_wrapper(config: Any) -> bool:
    kind = type(config)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind].__name__
    return name in (config.architectures or ()) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING
