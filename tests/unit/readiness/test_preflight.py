"""What a run reads is looked at before it starts: cheap, complete, and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.base.errors import DatasetError, EigenShiftError, ScorerError, SettingsError
from eigenshift.datasets import reading
from eigenshift.readiness import preflight
from eigenshift.readiness.preflight import require_inputs, require_source, require_writable
from eigenshift.settings import RefreshSettings, SourceSettings, load_preset

Change = Callable[[Path], list[str]]


def load(*overrides: str) -> RefreshSettings:
    """The demo's settings with changes."""
    return load_preset("demo", list(overrides))


def empty_file(folder: Path) -> list[str]:
    """An empty source."""
    (folder / "comments.csv").write_bytes(b"")
    return [f"sources.0.uri={folder / 'comments.csv'}"]


def header_alone(folder: Path) -> list[str]:
    """A source of a header and no row."""
    (folder / "comments.csv").write_text("comment_text,toxic\n")
    return [f"sources.0.uri={folder / 'comments.csv'}"]


def other_columns(folder: Path) -> list[str]:
    """A source without the columns of its format."""
    (folder / "comments.csv").write_text("tea,cups\ngreen,2\n")
    return [f"sources.0.uri={folder / 'comments.csv'}"]


def cut_checkpoint(folder: Path) -> list[str]:
    """A checkpoint that was cut short to nothing."""
    (folder / "toxic.ckpt").write_bytes(b"")
    return [f"scorer.checkpoint={folder / 'toxic.ckpt'}"]


def model_without_weights(folder: Path) -> list[str]:
    """A model's folder that holds its configuration alone."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    return [f"model.id={folder / 'model'}"]


FAULTS: dict[str, tuple[Change | str, str]] = {
    "no source": ("sources.2.uri={}/none.jsonl", "expected at least one file"),
    "an empty source": (empty_file, "comments.csv"),
    "a source of a header": (header_alone, "found no rows at all"),
    "a source of other columns": (other_columns, "comment_text"),
    "no checkpoint": ("scorer.checkpoint={}/none.ckpt", "expected a file or folder"),
    "an empty checkpoint": (cut_checkpoint, "found an empty one"),
    "no configuration": ("scorer.config_folder={}", "config.json: expected a file"),
    "no model": ("model.id={}/none", "expected a folder with config.json"),
    "a model without weights": (model_without_weights, "safetensors"),
    "no cases": ("scorer_quality.functional_cases={}/none.csv", "expected a file of cases"),
    "no words": ("components.lexicon={}/none.txt", "components.lexicon"),
    "no tasks": ('benchmark.tasks=["{}/none"]', "task file"),
    "no words of a scorer": (
        'further_scorers=[{{"kind": "lexicon", "words": "{}/none.txt"}}]',
        "scorer.words",
    ),
    "no folder of a scorer": (
        'further_scorers=[{{"kind": "linear", "model": "{}/none"}}]',
        "scorer.model",
    ),
    "no folder of a classifier": (
        'further_scorers=[{{"kind": "classifier", "model": "{}/none"}}]',
        "scorer.model",
    ),
}
"""What is wrong, and words of the message."""


@pytest.mark.parametrize("name", FAULTS)
def test_what_lacks_is_told(name: str, tmp_path: Path) -> None:
    """Each by an error of the input that names the place; the same a stage would raise later."""
    fault, words = FAULTS[name]
    overrides = [fault.format(tmp_path)] if isinstance(fault, str) else fault(tmp_path)
    if "lexicon" in overrides[0] and overrides[0].startswith("components"):
        overrides.append("components.positions=lexicon")
    with pytest.raises(EigenShiftError, match=words) as refused:
        require_inputs(load(*overrides))
    assert str(tmp_path) in str(refused.value)


def test_all_that_lacks_is_told_at_once(tmp_path: Path) -> None:
    """One message with a line each, so that nobody starts five times."""
    with pytest.raises(SettingsError, match="2 things that the run reads") as refused:
        require_inputs(load(f"model.id={tmp_path}/a", f"scorer.checkpoint={tmp_path}/b"))
    assert [line[:2] for line in str(refused.value).splitlines()[1:]] == ["- ", "- "]


def test_the_demo_is_whole_and_nothing_of_it_is_digested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files would be read twice otherwise: here and by the stage."""

    def refuse(*_: object) -> str:
        raise AssertionError("digested")

    for module, name in (
        (reading, "digest_file"),
        (sys.modules["eigenshift.model.files"], "digest_unchanged"),
    ):
        monkeypatch.setattr(module, name, refuse)
    require_inputs(load())


def test_torch_is_not_imported() -> None:
    """A run with nothing to do looks here, too, and should not wait for it."""
    code = (
        "import sys; from eigenshift.readiness.preflight import require_inputs; "
        "from eigenshift.settings import load_preset; require_inputs(load_preset('demo')); "
        "print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_large_file_is_opened_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has rows; a JSON array of gigabytes would have to be read whole for the first."""
    path = tmp_path / "comments.csv"
    path.write_text("comment_text,toxic\n")
    source = SourceSettings(name="comments", format="jigsaw", uri=str(path))
    with pytest.raises(DatasetError, match="no rows"):
        require_source(source)
    monkeypatch.setattr(reading, "PEEK_BYTES", 4)
    assert [file.uri for file in require_source(source)] == [str(path)]


def test_detection_needs_no_scorer_and_no_prompts(tmp_path: Path) -> None:
    """Nothing is generated or judged."""
    settings = load(f"scorer.checkpoint={tmp_path}/none", f"sources.2.uri={tmp_path}/none")
    require_inputs(settings, only_detects=True)


def test_on_a_cluster_only_what_is_read_here_is_looked_for(tmp_path: Path) -> None:
    """Model and scorers are the workers' to find."""
    address = ["execution.runner=dask", "execution.cluster_address=tcp://far:8786"]
    require_inputs(load(*address, f"model.id={tmp_path}/none"))
    with pytest.raises(DatasetError):
        require_inputs(load(*address, f"sources.0.uri={tmp_path}/none"))


@pytest.mark.parametrize("is_here", [True, False])
def test_a_release_of_detoxify_is_asked_for_where_none_is_here(
    is_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then: to know which release is meant, torch would be imported."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if is_here:
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        (tmp_path / "hub" / "checkpoints" / "toxic.ckpt").write_bytes(b"a")

    def refuse(*_: Any) -> None:
        raise ScorerError("asked")

    monkeypatch.setattr(preflight, "refuse_download", refuse)
    settings = load("scorer.checkpoint=null", "scorer.config_folder=null")
    if is_here:
        require_inputs(settings)
    else:
        with pytest.raises(ScorerError, match="asked"):
            require_inputs(settings)


@pytest.mark.parametrize("place", ["/proc/eigenshift/store", "/sys/eigenshift"])
def test_a_place_where_no_folder_can_be_made_is_refused(place: str) -> None:
    """Rights alone would allow it to root."""
    with pytest.raises(SettingsError, match="expected a folder that can be made"):
        require_writable(place)


def test_a_new_store_is_not_made_by_looking(tmp_path: Path) -> None:
    """Something else may lack."""
    require_writable(str(tmp_path / "new" / "store"))
    assert list(tmp_path.iterdir()) == []
