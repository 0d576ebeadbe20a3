"""The models that can be fetched."""

from __future__ import annotations

import re

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.fetching.catalogue import CATALOGUE, find_packaged, suggest_fetching
from eigenshift.settings import list_presets


def test_every_model_is_pinned_and_has_a_preset() -> None:
    """Version, two digests and a licence; and settings to go on with."""
    for name, model in CATALOGUE.items():
        assert model.name == name
        assert name in list_presets()
        for digest in (model.wheel_sha256, model.gguf_sha256):
            assert re.fullmatch("[0-9a-f]{64}", digest)
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", model.requirement)
        assert model.licence


def test_an_unknown_name_gets_those_that_are_there() -> None:
    """And what to do with any other model."""
    with pytest.raises(SettingsError, match=r"expected one of smollm2.*model\.id"):
        find_packaged("gpt5")


def test_a_missing_folder_of_a_known_name_is_told_how_to_make() -> None:
    """Whatever folder it is in; another name gets no advice."""
    command = "eigenshift fetch-model smollm2 --out /somewhere/smollm2"
    assert suggest_fetching("/somewhere/smollm2") == command
    assert suggest_fetching("/somewhere/else") is None
