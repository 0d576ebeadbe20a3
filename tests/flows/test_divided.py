"""A refresh with the model's trunk on disk finds what one with the whole model finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.model import loading
from eigenshift.model.device_maps import Division
from eigenshift.model.loading import forget_models
from eigenshift.model.weight_loading import load_weights
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from tests.support.plain_refresh import refresh_plainly

Load = Callable[..., RefreshSettings]

TRUNK_ON_DISK = (
    "execution.device_map={transformer.h: disk, transformer.ln_f: disk, transformer.wpe: disk, "
    "transformer.wte: cpu, lm_head: cpu}"
)
DEEP = ("patch.intervention=eigenshift_fisher_deep", "activations.layers=null")


def list_files(store: str) -> dict[tuple[str, str, str], str]:
    """(Kind, fingerprint, file) -> digest, of every artifact."""
    return {
        (manifest.kind, manifest.fingerprint, file.name): file.sha256
        for manifest in ArtifactStore(store).list_manifests()
        for file in manifest.files
    }


@pytest.mark.slow
def test_a_refresh_with_the_trunk_on_disk_finds_the_same(
    load_small: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of every artifact, of a run with an edit of every layer: byte for byte."""
    divisions: list[Division | None] = []

    def load_and_tell(*given: Any, **named: Any) -> Any:
        divisions.append(given[3])
        return load_weights(*given, **named)

    monkeypatch.setattr(loading, "load_weights", load_and_tell)
    stores = [str(tmp_path / name) for name in ("whole", "divided")]
    for store, more in zip(stores, ((), (TRUNK_ON_DISK,)), strict=True):
        divisions.clear()
        forget_models()
        refresh_plainly(load_small(*DEEP, *more, f"store={store}"))
        assert divisions
        assert all((division is not None) == bool(more) for division in divisions)
    expected, found = (list_files(store) for store in stores)
    assert {"patch", "continuations", "fluency", "neurons", "fisher_components"} <= {
        kind for kind, _, _ in found
    }
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()
