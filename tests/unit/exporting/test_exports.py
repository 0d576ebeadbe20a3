"""Exports of a run: which runs and arms, which folders, and that nothing half-written stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from eigenshift.base.errors import ComponentError, FoldingError, ModelError, SettingsError
from eigenshift.exporting import ExportOptions, export_patch, exports, merged
from eigenshift.exporting.base_files import open_patched_base
from eigenshift.ledger.releases import roll_back
from eigenshift.ledger.runs import write_run
from eigenshift.model.heads import digest_tensor
from eigenshift.model.loading import LanguageModel, forget_models, load_model
from eigenshift.model.weight_files import list_tensors
from eigenshift.patches.patching import (
    apply_patch,
    compute_parameters,
    load_patch,
    patched_model,
    stack_patches,
)
from eigenshift.settings import ExportCheck, ModelSettings
from eigenshift.store import output_folder
from tests.support.small_store import SmallStore, build_small_store
from tests.unit.exporting.conftest import TOKENS, add_linear_patch, open_run_patch

FORMATS = ("patch", "merged", "lora")


@torch.inference_mode()
def run(model: Any) -> torch.Tensor:
    """Logits of the test's tokens."""
    return model(TOKENS).logits


def flip_bit(path: Path, place: int) -> None:
    """Replace a file by one that differs in one bit; a loaded model may still map the old one."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_patch_export_is_the_patch_itself(
    tied: SmallStore, tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """The exported files load and fit the base's head."""
    out = export_patch(tied.url, None, "patch", tmp_path / "new" / "out")
    patch = load_patch(out / "patch.safetensors", out / "patch.json")
    compute_parameters(tiny_language_model, patch)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "patch.json",
        "patch.safetensors",
        "reproduce.json",
    ]


def test_a_patch_export_needs_no_store(
    tied: SmallStore, tiny_language_model: LanguageModel, tmp_path: Path
) -> None:
    """The folder alone is loaded, applied, stacked and undone: the base's exact bytes are back."""
    out = export_patch(tied.url, None, "patch", tmp_path / "out")
    patch = load_patch(out / "patch.safetensors", out / "patch.json")
    assert (patch.description.component_indices, patch.description.factor) == ((1, 4), 0.0)
    assert (patch.edit.head.right.shape, patch.sigma.shape) == ((32, 2), (2,))
    model = tiny_language_model
    before = digest_tensor(model.head_weight)
    assert before == patch.description.base_digest
    applied = apply_patch(model, patch)
    assert digest_tensor(model.head_weight) == patch.description.patched_digest != before
    with pytest.raises(ComponentError, match="already patched"):
        apply_patch(model, patch)
    applied.undo()
    assert digest_tensor(model.head_weight) == before
    apply_patch(model, stack_patches(model, [patch, patch])).undo()
    assert digest_tensor(model.head_weight) == before


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_patch_of_linear_layers_is_exported_in_every_format(
    kind: str,
    format_: str,
    tied: SmallStore,
    untied: SmallStore,
    tiny_language_model: LanguageModel,
    untied_model: LanguageModel,
    tmp_path: Path,
) -> None:
    """Conv1D under a tied head, Linear beside a head that changes too: always the run's logits."""
    small, model = (tied, tiny_language_model) if kind == "tied" else (untied, untied_model)
    copy = small.copy_to(tmp_path / "store")
    made = add_linear_patch(copy, model, has_head=kind == "untied")
    options = ExportOptions(arm="deep")
    out = export_patch(copy.url, copy.run_id, format_, tmp_path / "out", options)
    with patched_model(model, made):
        expected = run(model.model)
    assert not torch.allclose(expected, run(model.model), atol=1e-2)
    if format_ == "patch":
        patch = load_patch(out / "patch.safetensors", out / "patch.json")
        with patched_model(model, patch):
            found = run(model.model)
    else:
        source = out if format_ == "merged" else model.id
        found_model = AutoModelForCausalLM.from_pretrained(source).eval()
        if format_ == "lora":
            found_model = peft.PeftModel.from_pretrained(found_model, out).eval()
        found = run(found_model)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    text = " ".join((out / "README.md").read_text().split())
    head = "changes what enters the output head along 2 directions and " if kind == "untied" else ""
    assert f"A patch (deep) that {head}adds products of ranks 1 to 3 to the weights of 4" in text


def test_what_is_exported_by_default_is_in_force(
    tied: SmallStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a held run's patch; without a patch in force a run has to be named, with a warning."""
    copy = tied.copy_to(tmp_path / "store")
    held = copy.add_run("refresh", "held")
    out = export_patch(copy.url, None, "patch", tmp_path / "out")
    assert f"`{copy.run_id}`" in (out / "README.md").read_text()
    assert held.run_id > copy.run_id
    options = ExportOptions(arm="random_components")
    export_patch(copy.url, held.run_id, "patch", tmp_path / "other", options)
    assert f"{held.run_id} (held): its patch random_components is not in force" in caplog.text
    caplog.clear()
    roll_back(copy.artifacts.store, copy.record.model_id)
    with pytest.raises(SettingsError, match=r"no patch in force.*--run"):
        export_patch(copy.url, None, "patch", tmp_path / "none")
    export_patch(copy.url, copy.run_id, "patch", tmp_path / "named")
    assert "is not in force" in caplog.text


@pytest.mark.parametrize("format_", ["merged", "lora"])
def test_a_changed_base_is_refused(
    tmp_path: Path, untied_model: LanguageModel, format_: str
) -> None:
    """A base whose files differ from the run's is not patched."""
    folder = tmp_path / "model"
    shutil.copytree(untied_model.id, folder)
    forget_models()  # or the same files elsewhere would be taken for these
    model = load_model(ModelSettings(id=str(folder)), "cpu")
    small = build_small_store(str(tmp_path / "store"), model)
    flip_bit(folder / "model.safetensors", -1)
    with pytest.raises(ModelError, match="expected the model of run"):
        export_patch(small.url, None, format_, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format_", ["merged", "lora"])
def test_a_base_beside_which_an_adapter_was_put_is_refused(
    tmp_path: Path, untied_model: LanguageModel, format_: str
) -> None:
    """What transformers would load from the folder is not the model that was measured."""
    folder = tmp_path / "model"
    shutil.copytree(untied_model.id, folder)
    forget_models()  # or the same files elsewhere would be taken for these
    model = load_model(ModelSettings(id=str(folder)), "cpu")
    small = build_small_store(str(tmp_path / "store"), model)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    options = ExportOptions(check=ExportCheck.files)
    with pytest.raises(ModelError, match="found an adapter beside it"):
        export_patch(small.url, None, format_, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_base_of_other_values_is_told_by_the_patch(
    untied: SmallStore, untied_model: LanguageModel, tmp_path: Path
) -> None:
    """Even where the files' own digest is not known, the patch's digest of the head is."""
    shutil.copytree(untied_model.id, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    flip_bit(path, list_tensors(path)["lm_head.weight"].first_byte)
    with pytest.raises(ModelError, match=r"expected lm_head\.weight with digest"):
        open_patched_base(tmp_path / "model", open_run_patch(untied), "float32")


def test_a_patch_without_a_place_in_the_weights_is_not_exported(
    untied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its own files can be: merged and LoRA say why not."""
    patch = open_run_patch(untied)
    description = patch.description.model_copy(
        update={"obstacle": "there is no bias", "tensors": {}}
    )
    obstructed = type(patch)(description, patch.edit, patch.sigma)
    monkeypatch.setattr(exports, "open_patch", lambda _: obstructed)
    for format_ in ("merged", "lora"):
        with pytest.raises(FoldingError, match="there is no bias"):
            export_patch(untied.url, None, format_, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    out = export_patch(untied.url, None, "patch", tmp_path / "out")
    assert "runs with hooks only: there is no bias" in (out / "README.md").read_text()


@pytest.mark.parametrize("format_", FORMATS)
def test_an_arm_of_a_comparison_is_exported(
    untied: SmallStore, tmp_path: Path, format_: str
) -> None:
    """A named comparison gives any of its patches, and its card says that no gate judged it."""
    comparison = untied.add_run("compare", "finished")
    options = ExportOptions(arm="random_components")
    out = export_patch(untied.url, comparison.run_id, format_, tmp_path / "out", options)
    text = (out / "README.md").read_text()
    assert "no gate judged it" in text
    assert "| arm | random_components |" in text


def test_runs_arms_and_formats_that_do_not_fit_are_refused(
    tied: SmallStore, tmp_path: Path
) -> None:
    """A detection, a run that failed early, an unknown run, arm or format: each has its reason."""
    detection = tied.add_run("detect", "finished")
    failed = tied.add_run("refresh", "failed")
    failed.artifacts = []
    write_run(tied.artifacts.store, failed)
    for run_id, format_, arm, message in (
        (detection.run_id, "patch", "eigenshift", "expected a refresh or compare, found a detect"),
        (failed.run_id, "patch", "eigenshift", "expected a patch of arm 'eigenshift', found none"),
        (tied.run_id, "patch", "aura", "found eigenshift, random_components"),
        ("nothing", "patch", "eigenshift", "expected run"),
        (None, "onnx", "eigenshift", "expected one of merged, lora, patch"),
    ):
        with pytest.raises(SettingsError, match=message):
            export_patch(tied.url, run_id, format_, tmp_path / "out", ExportOptions(arm=arm))


# Folders


def test_folder_with_content_is_refused(tied: SmallStore, tmp_path: Path) -> None:
    """Existing files are never mixed with an export or overwritten."""
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SettingsError, match="new or empty folder"):
        export_patch(tied.url, None, "patch", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_empty_folder_is_used(tied: SmallStore, tmp_path: Path) -> None:
    """An empty folder becomes the export."""
    out = tmp_path / "out"
    out.mkdir()
    assert export_patch(tied.url, None, "patch", out) == out
    assert (out / "README.md").is_file()


@pytest.mark.parametrize("format_", FORMATS)
def test_crash_at_the_end_leaves_nothing(
    untied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    """Even an interrupt when all but the card is written removes the unfinished folder."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exports, "write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_patch(untied.url, None, format_, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_copy_leaves_nothing(
    untied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control-C in the middle of the weights removes what was written of them."""
    written = []

    def interrupt(blocks: Any, target: Any) -> str:
        target.write(b"half of a tensor")
        target.flush()
        written.extend(path.name for path in tmp_path.glob(".out.*/*.safetensors"))
        raise KeyboardInterrupt

    monkeypatch.setattr("eigenshift.model.weight_files._write_blocks", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_patch(untied.url, None, "merged", tmp_path / "out")
    assert written == ["model.safetensors"]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(untied: SmallStore, tmp_path: Path) -> None:
    """A real write that the system refuses half-way (here: a limit on file sizes) is explained."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(SettingsError, match=os.strerror(errno.EFBIG)):
            export_patch(untied.url, None, "merged", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before_writing(
    untied: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What will not fit is not begun."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(merged, "write_changed_file", None)
    with pytest.raises(SettingsError, match=r"GB of free space, found 0\.0 GB"):
        export_patch(untied.url, None, "merged", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
