"""A quantised trunk on the whole line: a deep patch is judged and exported as a LoRA beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eigenshift.base.errors import FoldingError
from eigenshift.exporting import ExportOptions, export_patch
from eigenshift.ledger.runs import read_run
from eigenshift.patches.patching import open_patch
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from tests.support.small_runs import EASY_BOUNDS, ENOUGH_EVIDENCE

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_server"),
]
MODEL = Path(__file__).parents[2] / "data" / "demo" / "model"


def test_a_deep_patch_of_a_quantised_trunk(
    load_small: Callable[..., RefreshSettings], tmp_path: Path
) -> None:
    """Studied, patched, judged, reloaded; merged is refused, the adapter is written."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from flows.refresh import run_refresh

    folder = tmp_path / "quantised"
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    for path in MODEL.glob("*token*"):
        shutil.copy(path, folder / path.name)
    outcome = run_refresh(
        load_small(
            *(*ENOUGH_EVIDENCE, *EASY_BOUNDS, f"model.id={folder}", "gate.check_reload=true"),
            "patch.intervention=eigenshift_fisher_deep",
        )
    )
    store = str(tmp_path / "store")
    artifacts = ArtifactStore(store)
    record = read_run(artifacts.store, outcome.run_id)
    patch = open_patch(artifacts.open(record.find_artifact("patch", label=record.judged)))
    assert patch.description.beside
    assert patch.description.obstacle is None
    assert outcome.status == "promoted"
    (reload_check,) = (check for check in outcome.checks if "reloads" in check["name"])
    assert reload_check["is_passed"]
    options = ExportOptions(unties=True)
    out = export_patch(store, outcome.run_id, "lora", tmp_path / "lora", options)
    assert "leave the adapter beside them" in (out / "README.md").read_text()
    with pytest.raises(FoldingError, match="--format lora"):
        export_patch(store, outcome.run_id, "merged", tmp_path / "merged")
