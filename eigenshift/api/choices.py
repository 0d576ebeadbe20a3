"""The settings of a study without a run: every setting there is, but nothing has to be named.

What a run is told by its settings (model, sources), a notebook gives as objects. All others have
the defaults of a run, so that a study gives the numbers of a run with the same texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from eigenshift.base.errors import SettingsError
from eigenshift.settings import (
    ModelSettings,
    RefreshSettings,
    Role,
    SourceSettings,
    parse_settings_as,
)

Given = RefreshSettings | Mapping[str, Any] | None
"""Settings of a run, or some of them by their dotted names, e.g. {"generation.n_samples": 5}."""


class StudySettings(RefreshSettings):
    """As a run's, without model and sources."""

    required_roles: ClassVar[tuple[Role, ...]] = ()

    model: ModelSettings = Field(ModelSettings(id="given"), description="Given as an object.")
    sources: tuple[SourceSettings, ...] = Field((), description="Given as objects.")


def settle(given: Given) -> RefreshSettings:
    """The settings in force.

    Raises:
        SettingsError: One is unknown or does not fit.
    """
    if isinstance(given, RefreshSettings):
        return given
    document: dict[str, Any] = {}
    for name, value in (given or {}).items():
        section, parts = document, name.split(".")
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise SettingsError(f"settings: {name}: {part!r} is a single value, no section.")
        section[parts[-1]] = value
    return parse_settings_as(StudySettings, document, "settings")
