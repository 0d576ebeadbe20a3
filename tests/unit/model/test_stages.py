"""The key of the model: how it is talked to is part of it, and raw text is as it always was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eigenshift.base.errors import ModelError
from eigenshift.model.chat import ChatFormat
from eigenshift.model.files import uses_chat
from eigenshift.model.loading import load_model
from eigenshift.model.stages import IdentityKey
from eigenshift.settings import ModelSettings, load_preset
from tests.support import chat_templates


@pytest.fixture(params=["chat_template.jinja", "tokenizer_config.json"])
def chat_folder(request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a chat template, in each place where templates are."""
    folder = tmp_path / "chat-model"
    shutil.copytree(tiny_model_folder, folder)
    path = folder / request.param
    if path.suffix == ".jinja":
        path.write_text(chat_templates.PLAIN, encoding="utf-8")
    else:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["chat_template"] = chat_templates.PLAIN
        path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_key(folder: Path, **settings: str) -> dict[str, object]:
    """What of the model's settings enters its fingerprint."""
    run = load_preset("demo")
    model = ModelSettings(id=str(folder), **settings)
    return IdentityKey.of_model(run.model_copy(update={"model": model})).as_settings()


def test_raw_text_keeps_the_key_it_had(tiny_model_folder: Path, chat_folder: Path) -> None:
    """Whether there is no template or it is not to be used."""
    assert make_key(tiny_model_folder) == {"dtype": "float32"}
    assert make_key(chat_folder, chat="off") == {"dtype": "float32"}


def test_a_conversation_is_in_the_key(chat_folder: Path) -> None:
    """With the system message that is not among the model's files."""
    asked = make_key(chat_folder)
    assert asked == make_key(chat_folder, chat="on")
    assert asked == {"dtype": "float32", "chat": {"system_prompt": None}}
    assert make_key(chat_folder, system_prompt="Be kind.")["chat"] == {"system_prompt": "Be kind."}


@pytest.mark.parametrize("settings", [{"chat": "on"}, {"system_prompt": "Be kind."}])
def test_a_model_without_a_template_is_refused_where_one_is_needed(
    tiny_model_folder: Path, settings: dict[str, str]
) -> None:
    """The setting that needs it is named."""
    with pytest.raises(ModelError, match=rf"chat template.*{next(iter(settings))}"):
        uses_chat(ModelSettings(id=str(tiny_model_folder), **settings), tiny_model_folder)


def test_loaded_models_do_not_share_how_they_are_talked_to(chat_folder: Path) -> None:
    """The same weights with and without the template, in one process."""
    asked = load_model(ModelSettings(id=str(chat_folder)), "cpu")
    assert isinstance(asked.chat, ChatFormat)
    raw = load_model(ModelSettings(id=str(chat_folder), chat="off"), "cpu")
    assert raw.chat is None
    assert raw.digest == asked.digest


@pytest.mark.parametrize(("written", "meant"), [("off", "off"), ("on", "on"), ("auto", "auto")])
def test_a_bare_word_in_yaml_means_what_it_says(written: str, meant: str) -> None:
    """YAML 1.1 reads on and off as truth values."""
    run = load_preset("demo", [f"model.chat={written}"])
    assert run.model.chat == meant
