"""What all settings models share: frozen, unknown fields refused, no secrets in URLs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from eigenshift.base.locations import has_secret

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


class Frozen(BaseModel):
    """A settings model: immutable, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )
