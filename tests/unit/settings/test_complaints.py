"""What is said of settings that do not fit: the option, our words, the nearest field."""

from __future__ import annotations

from typing import Any

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.settings import RefreshSettings, load_preset, parse_settings, parse_source
from tests.support.settings_fields import list_fields

NONSENSE: tuple[Any, ...] = ({"zorb": 1}, [["zorb"]], "zorb\n", -1.5, None, True)
PYDANTICS_WORDS = ("Input should", "Extra inputs", "Field required", "valid ", "Value error", "[")


def complain(*overrides: str) -> str:
    """What is said of the demo's settings with these overrides."""
    with pytest.raises(SettingsError) as caught:
        load_preset("demo", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "generation.n_sample=3",
            "--set generation.n_sample=...: there is no such setting. "
            "Did you mean 'generation.n_samples'?",
        ),
        (
            "generatoin.n_samples=3",
            "--set generatoin.n_samples=...: there is no such setting. "
            "Did you mean 'generation.n_samples'?",
        ),
        (
            "n_samples=3",
            "--set n_samples=...: there is no such setting. Did you mean 'generation.n_samples'?",
        ),
        (
            "sources.1.langauge=zh",
            "--set sources.1.langauge=...: there is no such setting. "
            "Did you mean 'sources.1.language'?",
        ),
        (
            "scorer={kidn: linear}",
            "--set scorer=... (scorer.kidn): there is no such setting. Did you mean 'scorer.kind'?",
        ),
        (
            "generation.n_tokens=many",
            "--set generation.n_tokens=...: expected a whole number, found 'many'.",
        ),
        (
            "generation.n_samples=0",
            "--set generation.n_samples=...: expected at least 1, found 0.",
        ),
        (
            "components.factor=1.5",
            "--set components.factor=...: expected at most 1.0, found 1.5.",
        ),
        (
            "generation=5",
            "--set generation=...: expected a section of settings, found 5.",
        ),
        ("model.id=", "--set model.id=...: expected text, found nothing."),
        (
            "model.dtype=float23",
            "--set model.dtype=...: expected one of float32, bfloat16, float16, auto, found "
            "'float23'. Did you mean 'float32'?",
        ),
        (
            "execution.device_map=5",
            "--set execution.device_map=...: expected auto or a section of keys and values, "
            "found 5.",
        ),
        ("model.id.deeper=1", "--set model.id.deeper=...: 'id' is a single value"),
        ("sources.7.uri=x", "--set sources.7.uri=...: expected a list position 0 to 3"),
        ("prompts.n_selection=[3", "--set prompts.n_selection=...: expected a value in YAML"),
    ],
)
def test_a_wrong_option_is_named_as_it_was_typed(override: str, said: str) -> None:
    """Not the file of the preset, which is right; with the nearest field, in our words."""
    found = complain(override)
    assert found.startswith(said)
    assert "demo.yaml" not in found


def test_what_does_not_go_together_names_the_file_and_the_options() -> None:
    """Either may be at fault."""
    found = complain("gate.max_capability_drop=0.01", "generation.n_samples=3")
    assert "demo.yaml with --set gate.max_capability_drop=..., --set generation.n_samples=" in found
    assert "gate.max_capability_drop bounds what benchmark.tasks measures" in found


def test_several_are_told_line_by_line() -> None:
    """The wrong one of a file beside that of an option."""
    document = load_preset("demo").model_dump(mode="json")
    document["generation"]["n_samples"] = "zorb"
    with pytest.raises(SettingsError) as caught:
        parse_settings({**document, "stroe": "x"}, "mine.yaml")
    first, *lines, last = str(caught.value).splitlines()
    assert first == "2 settings do not fit:"
    assert lines == [
        "  mine.yaml: generation.n_samples: expected a whole number, found 'zorb'.",
        "  mine.yaml: stroe: there is no such setting. Did you mean 'store'?",
    ]
    assert last == "docs/settings.md lists every field."


def test_a_url_with_credentials_is_not_repeated() -> None:
    """Neither as the value found nor in the name of the option."""
    url = "s3://key:secret@bucket/store"
    for override in (f"store={url}", f"sources.0.uri={url}", f"scorer={{model: '{url}'}}"):
        found = complain(override)
        assert "credentials do not belong in a URL" in found
        assert "secret" not in found


def test_a_source_of_the_command_line_is_named_by_its_option() -> None:
    """What is missing, too."""
    with pytest.raises(SettingsError, match=r"--source mine: uri: expected a value, found none\."):
        parse_source("{format: jigsaw}", "mine")
    with pytest.raises(SettingsError, match=r"found 'jigsw'\. Did you mean 'jigsaw'\?"):
        parse_source("{format: jigsw, uri: x}", "mine")


def test_nothing_is_said_in_the_words_of_pydantic() -> None:
    """Of every field, with values of every kind."""
    document = load_preset("demo").model_dump(mode="json")
    settings = RefreshSettings.model_validate(document)
    n_refused = 0
    for path in list_fields(settings):
        for value in NONSENSE:
            changed = RefreshSettings.model_validate(document).model_dump(mode="json")
            section: Any = changed
            *parents, name = path.split(".")
            for part in parents:
                section = section[part.removesuffix("[]")]
                section = section[0] if part.endswith("[]") else section
            section[name] = value
            try:
                parse_settings(changed, "mine.yaml")
            except SettingsError as error:
                n_refused += 1
                said = str(error).replace("[a-z0-9", "").replace("[A-Za-z0-9", "")
                assert not [word for word in PYDANTICS_WORDS if word in said], (path, value, said)
    assert n_refused > 300
