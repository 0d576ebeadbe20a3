"""The short form: what it changes, and how it looks to Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from eigenshift.base.errors import SettingsError
from eigenshift.settings import RefreshSettings, load_preset
from flows.quick import FIELDS, QuickRefresh

CHANGES: dict[str, Any] = {
    "store": "s3://bucket/store",
    "model": "org/name",
    "n_prompts": 7,
    "n_samples": 3,
    "max_perplexity_increase": 0.5,
    "intervention": "auto",
}


def read(settings: RefreshSettings, name: str) -> Any:
    """A setting by its dotted name."""
    found: Any = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_an_empty_form_is_the_preset() -> None:
    """Nothing is changed that nobody changed."""
    assert QuickRefresh().load() == load_preset("demo")
    assert QuickRefresh(**dict.fromkeys(CHANGES)).load() == load_preset("demo")


@pytest.mark.parametrize("name", CHANGES)
def test_a_field_changes_its_setting_and_no_other(name: str) -> None:
    """Each by itself."""
    found = QuickRefresh.model_validate({name: CHANGES[name]}).load()
    assert read(found, FIELDS[name]) == CHANGES[name]
    for other, setting in FIELDS.items():
        if other != name:
            assert read(found, setting) == read(load_preset("demo"), setting)


def test_every_field_is_of_a_setting() -> None:
    """But the one that names the settings."""
    assert set(QuickRefresh.model_fields) == {"settings", *FIELDS}


def test_another_model_has_neither_the_name_nor_the_revision_of_the_first(tmp_path: Path) -> None:
    """Its releases would be entered under the other's name."""
    path = tmp_path / "mine.yaml"
    document = load_preset("demo").model_dump(mode="json", exclude_unset=True)
    document["model"] |= {"name": "first", "revision": "abc"}
    path.write_text(yaml.safe_dump(document))
    assert QuickRefresh(settings=str(path)).load().model.model_id == "first"
    model = QuickRefresh(settings=str(path), model="org/other").load().model
    assert (model.model_id, model.revision) == ("org/other", None)


def test_settings_that_are_not_there_are_told() -> None:
    """With the presets there are."""
    with pytest.raises(SettingsError, match="demo"):
        QuickRefresh(settings="none").load()
    with pytest.raises(ValidationError):
        QuickRefresh.model_validate({"n_prompts": 0})


def test_the_form_has_no_switch_between_a_type_and_none() -> None:
    """A field that may be left empty is shown as one: no null, and no default."""
    properties = QuickRefresh.model_json_schema()["properties"]
    assert not any("anyOf" in field for field in properties.values())
    assert [name for name, field in properties.items() if "default" in field] == ["settings"]
