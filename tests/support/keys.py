"""Keys of stages, from the demo's settings with overrides."""

from __future__ import annotations

from typing import Any, TypeVar

from eigenshift.settings import load_preset
from eigenshift.stages.keys import Key

K = TypeVar("K", bound=Key)


def make_key(kind: type[K], *overrides: str, **given: Any) -> K:
    """A key of this kind.

    Args:
        kind: Whose.
        overrides: As on the command line, e.g. "components.seed=3".
        given: What a flow decides.
    """
    return kind.of(load_preset("demo", overrides), **given)
