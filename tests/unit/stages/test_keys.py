"""What `eigenshift.stages.keys` promises."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from eigenshift.stages.keys import Key, Reads


class Section(BaseModel):
    """Part of some settings."""

    seed: int = 3
    name: str | None = None


class Settings(BaseModel):
    """Some settings."""

    section: Section = Section()
    other: float = 0.5


class InnerKey(Key):
    """A key inside another."""

    seed: Annotated[int, Reads("section.seed", lambda seed: seed + 1)]


class OuterKey(Key):
    """A key with all that one may have."""

    dataset: str
    inner: InnerKey
    other: Annotated[float, Reads("other", fields=("other", "section.name"))]


def test_a_key_takes_what_it_reads_and_what_it_is_given() -> None:
    """Settings by their path, through what is made of them; the rest from the flow."""
    key = OuterKey.of(Settings(), dataset="demo")
    assert key.as_settings() == {"dataset": "demo", "inner": {"seed": 4}, "other": 0.5}


def test_what_is_given_takes_the_place_of_a_setting() -> None:
    """As where a search tries another value."""
    assert OuterKey.of(Settings(), dataset="demo", other=0.25).other == 0.25


def test_a_key_cannot_be_changed_and_has_no_other_fields() -> None:
    """It is what the fingerprint says."""
    key = InnerKey.of(Settings())
    with pytest.raises(ValidationError):
        key.seed = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        InnerKey(seed=1, more=2)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        key.other  # type: ignore[attr-defined] # noqa: B018


def test_what_a_flow_must_decide_is_required() -> None:
    """A key without it says which."""
    with pytest.raises(ValidationError, match="dataset"):
        OuterKey.of(Settings())


def test_paths_are_those_of_inner_keys_too() -> None:
    """And the fields behind what is no field itself."""
    assert list(OuterKey.list_paths()) == ["section.seed", "other", "section.name"]
