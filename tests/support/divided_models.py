"""Models in memory, divided, as a rule with their trunks on disk."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from eigenshift.model.device_maps import plan_division
from eigenshift.model.heads import find_head
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.weight_loading import without_warnings
from eigenshift.settings import Placement


def name_head_parts(model: Any) -> list[str]:
    """Names of the head's module and of an embedding that is its weight."""
    name, head = find_head(model)
    others = [
        other
        for other, module in model.named_modules()
        if module is not head and getattr(module, "weight", None) is head.weight
    ]
    return [name, *others]


def map_trunk_to_disk(model: Any) -> dict[str, str]:
    """An `execution.device_map`: all but the head, and what it shares, is on disk."""
    return {"": "disk", **dict.fromkeys(name_head_parts(model), "cpu")}


def divide(
    language_model: LanguageModel, folder: Path, device_map: dict[str, str] | None = None
) -> LanguageModel:
    """A divided copy; the model itself is left as it is.

    Args:
        language_model: Undivided.
        folder: For what is on disk.
        device_map: As in the settings; None: all but the head is on disk.
    """
    from accelerate import dispatch_model

    model = deepcopy(language_model.model).cpu()
    placement = Placement(device="cpu", device_map=device_map or map_trunk_to_disk(model))
    division = plan_division(model, placement)
    with without_warnings():
        dispatch_model(
            model,
            dict(division.places),
            offload_dir=str(folder),
            skip_keys=model._skip_keys_device_placement,
        )
    return wrap_model(
        model,
        language_model.tokenizer,
        model_id=language_model.id,
        digest=language_model.digest,
    )
