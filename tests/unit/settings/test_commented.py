"""The settings file of `init`: it loads, and every default in it is the default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from eigenshift.base.errors import SettingsError
from eigenshift.settings import RefreshSettings, compose_settings, find_absent, load_settings
from eigenshift.settings.commented import WIDTH

SOURCES = (
    "jigsaw=train.csv",
    "real_toxicity_prompts=s3://bucket/rtp.jsonl",
    "sentences=wiki/*.csv",
)
DEFAULT = re.compile(r"^( *)#(\w+: )", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of settings in the working folder, beside the texts and the model."""
    monkeypatch.chdir(tmp_path)
    for name in ("settings", "model"):
        tmp_path.joinpath(name).mkdir()
    tmp_path.joinpath("train.csv").touch()
    return tmp_path / "settings"


def compose(folder: Path, **given: Any) -> str:
    """The text of a file with these sources."""
    words = {"model": "gpt2", "sources": SOURCES, "store": None, "shows_all": True} | given
    return compose_settings(words.pop("model"), words.pop("sources"), folder, **words)


@pytest.mark.parametrize("shows_all", [True, False])
@pytest.mark.parametrize("uncomments", [True, False])
def test_a_file_loads_as_what_was_given(folder: Path, shows_all: bool, uncomments: bool) -> None:
    """Also with every default switched on: each is what the settings have without it."""
    text = compose(folder, shows_all=shows_all)
    if uncomments:
        text, n_switched = DEFAULT.subn(r"\1\2", text)
        assert n_switched > 50
    path = folder / "settings.yaml"
    path.write_text(text)
    loaded = load_settings(path)
    expected = {
        "model": {"id": "gpt2"},
        "sources": [
            {"name": "jigsaw", "format": "jigsaw", "uri": str(folder.parent / "train.csv")},
            {
                "name": "real_toxicity_prompts",
                "format": "real_toxicity_prompts",
                "uri": "s3://bucket/rtp.jsonl",
            },
            {"name": "sentences", "format": "sentences", "uri": str(folder.parent / "wiki/*.csv")},
        ],
    }
    if uncomments:
        expected["store"] = str(folder / ".eigenshift")
    assert loaded == RefreshSettings.model_validate(expected)


def test_every_field_is_there_with_its_description(folder: Path) -> None:
    """Of all sections; lines fit an editor."""
    text = compose(folder)
    words = " ".join(re.sub(r"(?m)^ *# ?", "", text).split())
    for name, field in RefreshSettings.model_fields.items():
        assert re.search(rf"(?m)^#?{name}:", text)
        assert str(field.description) in words
    for name in ("n_samples", "max_kl_to_base", "tokens_per_batch", "for_languages"):
        assert re.search(rf"(?m)^ +#{name}: ", text)
    assert all(len(line) <= WIDTH for line in text.splitlines() if "# " in line[:8])


def test_essential_sections_come_alone_unless_all_are_asked_for(folder: Path) -> None:
    """Half of the file, with the settings that people change."""
    short, whole = compose(folder, shows_all=False), compose(folder)
    assert len(short) < 0.7 * len(whole)
    assert "\ntune:" not in short
    assert "\ntune:" in whole


def test_paths_are_written_relative_to_the_file(folder: Path) -> None:
    """A folder that is there is one, a name that is not is the hub's; what lacks is told."""
    document = yaml.safe_load(compose(folder, model="model", store="./results"))
    assert document["model"]["id"] == "../model"
    assert document["store"] == "../results"
    absent = (*SOURCES, "toxicn=later.csv")
    text = compose(folder, model="./nowhere", sources=absent)
    assert find_absent(text, folder) == ["../nowhere", "../later.csv"]


def test_two_sources_of_a_format_have_different_names(folder: Path) -> None:
    """And a mapping gives what a format alone does not."""
    hub = "{format: huggingface, uri: owner/name, columns: {text: comment, label: toxic}}"
    sources = yaml.safe_load(compose(folder, sources=(*SOURCES, "jigsaw=more.csv", hub)))["sources"]
    assert [source["name"] for source in sources[3:]] == ["jigsaw-2", "huggingface"]
    assert sources[4]["uri"] == "owner/name"


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (SOURCES[:1], "no source for: prompts, neutral. Add for instance --source real_toxicity"),
        ((*SOURCES, "train.csv"), "--source train.csv: expected FORMAT=PLACE"),
        ((*SOURCES, "{format: ["), "expected FORMAT=PLACE"),
        ((*SOURCES, "jigsw=x"), "Did you mean 'jigsaw'?"),
        ((*SOURCES, "huggingface=owner/name"), "needs columns.label"),
    ],
)
def test_sources_that_do_not_do_are_refused(
    folder: Path, sources: tuple[str, ...], said: str
) -> None:
    """With what is missing, or how it is written."""
    with pytest.raises(SettingsError, match=re.escape(said)):
        compose(folder, sources=sources)
