"""What all settings share: how they look to a form."""

from __future__ import annotations

from pydantic import Field

from eigenshift.settings.fields import Frozen


class Small(Frozen):
    """Fields of every kind."""

    plain: str = "x"
    empty: int | None = Field(None, ge=1, title="Empty", description="May be left out.")
    chosen: int | None = 3
    section: dict[str, int] | None = None
    several: int | str | None = None


def test_a_plain_value_that_may_be_left_out_is_an_empty_field() -> None:
    """Neither null nor a default in its schema, where Prefect's form would make a switch of it."""
    properties = Small.model_json_schema()["properties"]
    assert properties["empty"] == {
        "type": "integer",
        "minimum": 1,
        "title": "Empty",
        "description": "May be left out.",
    }


def test_other_fields_are_as_they_were() -> None:
    """With their defaults; what null means there is not for us to hide."""
    properties = Small.model_json_schema()["properties"]
    assert properties["plain"]["default"] == "x"
    assert properties["chosen"]["default"] == 3
    for name in ("chosen", "section", "several"):
        assert {"type": "null"} in properties[name]["anyOf"]


def test_null_still_fits() -> None:
    """As deployments and records have it, here and by Prefect's own check of parameters."""
    from prefect.utilities.schema_tools.validation import validate

    values = Small.model_validate(dict.fromkeys(("empty", "section", "several"))).model_dump()
    validate(values, Small.model_json_schema(), raise_on_error=True, preprocess=True)
