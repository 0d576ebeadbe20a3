"""What all settings models share: frozen, unknown fields refused, no secrets in URLs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from eigenshift.base.locations import has_secret

PLAIN_TYPES = ("string", "integer", "number")
FRACTION = Annotated[float, Field(ge=0.0, le=1.0)]


SECRET_IN_URL = "secret_in_url"  # noqa: S105 - the name of an error


def _refuse_secret(location: str) -> str:
    if has_secret(location):
        raise PydanticCustomError(
            SECRET_IN_URL,
            "credentials do not belong in a URL, which is written into records; give them by the "
            "environment or a Prefect block (the URL is not shown)",
        )
    return location


def _name_switch(value: Any) -> Any:
    """YAML reads a bare `on` and `off` as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_name_switch)]
"""What is decided by what is found, unless it is told."""
Location = Annotated[str, AfterValidator(_refuse_secret)]
"""A path or URL."""


def _hide_none(schema: dict[str, Any]) -> None:
    """Show a plain value that may be left out as a field that may be left empty.

    Of a field whose schema names null Prefect's form makes a switch between a type and "None"; one
    that has neither null nor a default its server lets be null all the same.
    """
    for name, field in schema.get("properties", {}).items():
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        is_plain = len(kinds) == 1 and kinds[0].get("type") in PLAIN_TYPES
        if is_plain and len(field["anyOf"]) == 2 and field.get("default", "") is None:
            told = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
            schema["properties"][name] = kinds[0] | told


class Frozen(BaseModel):
    """A settings model: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        hide_input_in_errors=True,
        json_schema_extra=_hide_none,
    )
