"""Every field of the settings, and each changed to another value that could be meant."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel

from eigenshift.settings import (
    ComponentScore,
    JudgeSettings,
    PositionSource,
    RefreshSettings,
    Role,
    Site,
    SitePooling,
)
from eigenshift.settings.detection import Pooling

Model = TypeVar("Model", bound=BaseModel)

CHANGED: dict[str, Any] = {
    "activations.sites": (SitePooling(site=Site.residual, pooling=Pooling.last),),
    "activations.layers": (0,),
    "activations.precision": "float32",
    "sources[].language": "zh",
    "components.positions": PositionSource.spans,
    "sources[].role": Role.neutral,
    "statistics.max_probe_samples": 150,
    "prompts.min_toxicity": 0.1,
    "tune.scores": (ComponentScore.auroc,),
    "compare.interventions": ("leace",),
    "model.chat": "off",
    "model.dtype": "float64",
    "evaluation.max_texts": 10,
    "benchmark.apply_chat_template": "on",
    "scorer.model_type": "unbiased",
    "gate.slice_bounds": {"language=en": 0.5},
    "scorer.judge": JudgeSettings(),
    "further_scorers[].judge": JudgeSettings(),
}
"""Where no other value can be made from the type alone."""
SPECIMENS: dict[str, Any] = {"str": "other", "int": 7, "float": 0.25}


def list_fields(settings: RefreshSettings) -> Iterator[str]:
    """Dotted paths of all fields; the first of a list stands for all of it: `sources[].uri`."""
    yield from _walk(settings, "")


def _walk(model: BaseModel, prefix: str) -> Iterator[str]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and _is_section(value[0]):
            yield from _walk(value[0], f"{prefix}{name}[].")
        else:
            yield f"{prefix}{name}"


def _is_section(value: Any) -> bool:
    return isinstance(value, BaseModel) and not isinstance(value, SitePooling)


def change(settings: Model, path: str) -> Model:
    """The same settings but for one field; what belongs together is not checked."""
    return _change(settings, path.split("."), path)


def _change(model: Model, parts: list[str], path: str) -> Model:
    name = parts[0].removesuffix("[]")
    value: Any = getattr(model, name)
    if len(parts) == 1:
        return model.model_copy(update={name: _alter(value, type(model), name, path)})
    if parts[0].endswith("[]"):
        first, *others = value
        return model.model_copy(update={name: (_change(first, parts[1:], path), *others)})
    return model.model_copy(update={name: _change(value, parts[1:], path)})


def _alter(value: Any, model: type[BaseModel], name: str, path: str) -> Any:
    if path in CHANGED:
        return CHANGED[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return next(item for item in type(value) if item is not value)
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, str):
        return f"{value}-other"
    if isinstance(value, tuple):
        return (*value, type(value[0])(1)) if value else ("other",)
    annotation = str(model.model_fields[name].annotation)
    return next(found for kind, found in SPECIMENS.items() if kind in annotation)
