"""Keys: exactly the settings a stage reads.

A key is the part of a stage's fingerprint that comes from settings, and the only settings its work
is given: what is not in the key cannot be read, and what is in it is redone when it changes
(docs/decisions/0048-rooms-and-declared-stages.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self


@dataclass(frozen=True)
class Reads:
    """Where in the settings a field of a key comes from.

    Attributes:
        path: Dotted, e.g. "components.seed"; a section stands for all its fields.
        through: What is made of the value before it is kept; None keeps it as it is.
        fields: The settings behind a path that is none itself, but a property of some.
    """

    path: str
    through: Callable[[Any], Any] | None = None
    fields: tuple[str, ...] = ()

    def find(self, settings: BaseModel) -> Any:
        """The value in these settings."""
        found = reduce(getattr, self.path.split("."), settings)
        return found if self.through is None else self.through(found)


class Key(BaseModel):
    """Base of all keys: frozen; fields say by `Reads` where they come from.

    A field without `Reads` is a key of its own, or what a flow decides, such as the dataset, the
    layer or the arms a piece of work is about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def of(cls, settings: BaseModel, **given: Any) -> Self:
        """Take from the settings what the key reads.

        Args:
            settings: Of a run.
            given: What the flow decides, and what takes the place of a setting.
        """
        values = dict(given)
        for name, field in cls.model_fields.items():
            if name in values:
                continue
            source = next((item for item in field.metadata if isinstance(item, Reads)), None)
            if source is not None:
                values[name] = source.find(settings)
            elif isinstance(field.annotation, type) and issubclass(field.annotation, Key):
                values[name] = field.annotation.of(settings)
        return cls(**values)

    @classmethod
    def list_paths(cls) -> Iterator[str]:
        """Every place in the settings it reads."""
        for field in cls.model_fields.values():
            for item in field.metadata:
                if isinstance(item, Reads):
                    yield from item.fields or (item.path,)
            if isinstance(field.annotation, type) and issubclass(field.annotation, Key):
                yield from field.annotation.list_paths()

    def as_settings(self) -> dict[str, Any]:
        """What enters the fingerprint and the manifest, as JSON."""
        return self.model_dump(mode="json", by_alias=True)
