"""Settings: presets load, wrong values are refused with their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from eigenshift.base.errors import SettingsError
from eigenshift.settings import (
    ComponentSettings,
    DetectionSettings,
    RefreshSettings,
    Role,
    list_presets,
    load_preset,
    load_settings,
    load_settings_as,
    override_settings,
)
from eigenshift.settings.fields import PLAIN_TYPES

MINIMAL = {
    "model": {"id": "gpt2"},
    "sources": [
        {"name": "jigsaw", "format": "jigsaw", "uri": "./train.csv"},
        {"name": "rtp", "format": "real_toxicity_prompts", "uri": "s3://bucket/rtp.jsonl"},
        {"name": "wiki", "format": "sentences", "uri": "wiki.txt"},
    ],
}


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """A minimal settings file."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("name", list_presets())
def test_every_shipped_preset_loads(name: str) -> None:
    """A preset that does not fit the settings model would only fail at the user's."""
    assert load_preset(name).sources_for(Role.labelled)


def test_unknown_preset_names_the_known_ones() -> None:
    """The error lists what can be chosen."""
    with pytest.raises(SettingsError, match="demo"):
        load_preset("no-such-preset")


def test_relative_paths_are_relative_to_the_file(settings_file: Path) -> None:
    """A settings file can be used from any working folder."""
    settings = load_settings(settings_file)
    assert settings.sources[0].uri == str(settings_file.parent / "train.csv")
    assert settings.sources[1].uri == "s3://bucket/rtp.jsonl"


def test_a_store_in_the_file_is_relative_to_it_and_any_other_to_the_working_folder(
    settings_file: Path,
) -> None:
    """The default, a store given as an override, and that of the demo stay where one works."""
    document = yaml.safe_load(settings_file.read_text())
    assert load_settings(settings_file).store == load_preset("demo").store == "./.eigenshift"
    settings_file.write_text(yaml.safe_dump(document | {"store": "../results"}))
    assert load_settings(settings_file).store == str(settings_file.parent.parent / "results")
    assert load_settings(settings_file, ["store=./here"]).store == "./here"
    settings_file.write_text(yaml.safe_dump(document | {"store": "s3://bucket/eigenshift"}))
    assert load_settings(settings_file).store == "s3://bucket/eigenshift"


def test_paths_of_scorers_are_relative_to_the_file_too(settings_file: Path) -> None:
    """Those of further scorers and of scorers for a language as well."""
    document = yaml.safe_load(settings_file.read_text())
    lexicon = {"kind": "lexicon", "words": "./words.txt"}
    document["scorer"] = {
        "kind": "classifier",
        "model": "./classifier",
        "for_languages": [{**lexicon, "language": "zh"}],
    }
    document["further_scorers"] = [lexicon]
    document["components"] = {"positions": "occlusion"}
    settings_file.write_text(yaml.safe_dump(document))
    settings = load_settings(settings_file)
    words = str(settings_file.parent / "words.txt")
    assert settings.scorer.model == str(settings_file.parent / "classifier")
    assert settings.scorer.for_languages[0].words == words
    assert settings.further_scorers[0].words == words


@pytest.mark.parametrize(
    "scorer",
    ["{kind: lexicon, words: w}", "{for_languages: [{language: zh, kind: lexicon, words: w}]}"],
)
def test_a_scorer_without_gradients_needs_other_positions(scorer: str, settings_file: Path) -> None:
    """Refused at once, not when the first words are located, hours later."""
    with pytest.raises(SettingsError, match=r"components\.positions to 'occlusion'"):
        load_settings(settings_file, [f"scorer={scorer}"])
    load_settings(settings_file, [f"scorer={scorer}", "components.positions=occlusion"])
    load_settings_as(DetectionSettings, settings_file, [f"scorer={scorer}"])


def test_scorers_of_the_same_name_are_refused(settings_file: Path) -> None:
    """Their rows in the tables could not be told apart."""
    with pytest.raises(SettingsError, match="scorer names must differ; repeated: detoxify"):
        load_settings(settings_file, ["further_scorers=[{}]"])


def test_overrides_reach_nested_values_and_list_items(settings_file: Path) -> None:
    """`--set` takes dotted paths, list positions and YAML values."""
    settings = load_settings(
        settings_file,
        ["generation.n_samples=3", "sources.2.language=zh", "prompts.min_toxicity=0.5"],
    )
    assert settings.generation.n_samples == 3
    assert settings.sources[2].language == "zh"
    assert settings.prompts.min_toxicity == 0.5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("generation.n_samples=0", "generation.n_samples"),
        ("generation.n_smaples=3", "generation.n_smaples"),
        ("components.factor=1.5", "components.factor"),
        ("components.min_factor=-1", "components.min_factor"),
        ("components.factor=much", "components.factor"),
        ("tune.factors=[0.5, 1.0]", "tune.factors"),
        ("sources.7.language=en", "position"),
        ("nonsense", "key=value"),
        ("model.id.deeper=1", "single value"),
    ],
)
def test_a_wrong_override_is_refused_with_its_place(
    settings_file: Path, override: str, expected: str
) -> None:
    """Unknown fields, bad values and bad paths are all named in the error."""
    with pytest.raises(SettingsError, match=re.escape(expected)):
        load_settings(settings_file, [override])


@pytest.mark.parametrize("content", ["- a list", "text: [unclosed", "\xff\xfe"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    """Broken YAML, another shape or another encoding gives a clear error."""
    path = tmp_path / "settings.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"settings\.yaml"):
        load_settings(path)


def test_every_role_needs_a_source(settings_file: Path) -> None:
    """A run without neutral text could not tell its cost, so it is refused before it starts."""
    document = {**MINIMAL, "sources": MINIMAL["sources"][:2]}
    settings_file.write_text(yaml.safe_dump(document))
    with pytest.raises(SettingsError, match="neutral"):
        load_settings(settings_file)


def test_the_form_shows_every_default_and_description() -> None:
    """Prefect's run form prefills literal defaults only, and shows descriptions."""
    schema = RefreshSettings.model_json_schema()
    definitions = {**schema["$defs"], "RefreshSettings": schema}
    for name, definition in definitions.items():
        if definition["type"] != "object":
            continue
        required = set(definition.get("required", []))
        assert definition["additionalProperties"] is False, name
        for field, details in definition["properties"].items():
            is_empty = (
                details.get("type") in PLAIN_TYPES
            )  # None: tests/unit/settings/test_fields.py
            assert field in required or "default" in details or is_empty, (
                f"{name}.{field} has no default"
            )
            section = definitions.get(details.get("$ref", "").rpartition("/")[2], {})
            described = details.get("description") or section.get("description")
            assert described, f"{name}.{field} has no description"


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        ({"positions": "lexicon"}, "belong together"),
        ({"lexicon": "words.txt"}, "belong together"),
        ({"positions": "spans"}, "states_from 'labelled_text'"),
    ],
)
def test_sources_of_positions_that_lack_something_are_refused(
    components: dict[str, str], expected: str
) -> None:
    """A lexicon needs its file, labelled spans need labelled texts."""
    with pytest.raises(ValidationError, match=expected):
        ComponentSettings(**components)


@pytest.mark.parametrize(
    ("given", "factor", "min_factor"),
    [
        (["components.factor=0.3"], 0.0, 0.3),
        (["components.factor='3e-1'"], 0.0, 0.3),
        (["components.factor=0.3", "components.n_components=4"], 0.3, 0.0),
        (["components.min_factor=0.3"], 0.0, 0.3),
    ],
)
def test_a_factor_without_a_number_is_read_as_the_least_one(
    given: list[str], factor: float, min_factor: float
) -> None:
    """Files and records made before `min_factor` mean it by `factor`."""
    components = load_preset("demo", given).components
    assert (components.factor, components.min_factor) == (factor, min_factor)
    again = type(components).model_validate(components.model_dump(mode="json"))
    assert again == components


def test_a_factor_beside_the_least_one_is_refused_without_a_number() -> None:
    """It would do nothing."""
    with pytest.raises(SettingsError, match="of the automatic choice set min_factor"):
        load_preset("demo", ["components.min_factor=0.2", "components.factor=0.5"])


def test_folders_of_benchmark_tasks_are_relative_to_the_file(settings_file: Path) -> None:
    """Names of the harness's own tasks are left as they are."""
    tasks = ["piqa", "./tasks", "../all/one.yaml"]
    settings_file.write_text(yaml.safe_dump({**MINIMAL, "benchmark": {"tasks": tasks}}))
    folder = settings_file.parent
    assert load_settings(settings_file).benchmark.tasks == (
        "piqa",
        str(folder / "tasks"),
        str(folder.parent / "all" / "one.yaml"),
    )


def test_a_bound_on_capability_needs_questions(settings_file: Path) -> None:
    """A gate that asks for what nobody measures is refused before the run, not after an hour."""
    bound = "gate.max_capability_drop=0.02"
    with pytest.raises(SettingsError, match=r"name tasks, or leave the bound out"):
        load_settings(settings_file, [bound])
    assert load_settings(settings_file, [bound, "benchmark.tasks=[piqa]"]).gate.max_capability_drop
    with pytest.raises(SettingsError, match=r"max_capability_drop.*more than 0"):
        load_settings(settings_file, ["gate.max_capability_drop=0", "benchmark.tasks=[piqa]"])


def test_settings_of_a_record_take_overrides(settings_file: Path) -> None:
    """What is recorded stays as it is."""
    recorded = load_settings(settings_file).model_dump(mode="json")
    changed = override_settings(recorded, ["benchmark.tasks=[piqa]", "benchmark.limit=5"], "a run")
    assert (changed.benchmark.tasks, changed.benchmark.limit) == (("piqa",), 5)
    assert recorded["benchmark"]["tasks"] == []
    with pytest.raises(SettingsError, match="expected at least 1"):
        override_settings(recorded, ["benchmark.limit=0"], "a run")
