"""Settings without a run."""

from __future__ import annotations

import pytest

from eigenshift.api.choices import settle
from eigenshift.base.errors import SettingsError
from eigenshift.settings import ComponentSettings, load_preset


def test_nothing_has_to_be_named() -> None:
    """Defaults are a run's."""
    assert settle(None).components == ComponentSettings()


def test_settings_are_named_by_their_place() -> None:
    """Dotted or nested, or a run's own as they are."""
    dotted = settle({"generation.n_samples": 3, "generation.n_tokens": 7})
    nested = settle({"generation": {"n_samples": 3, "n_tokens": 7}})
    assert dotted == nested
    assert (dotted.generation.n_samples, dotted.generation.n_tokens) == (3, 7)
    preset = load_preset("demo")
    assert settle(preset) is preset


@pytest.mark.parametrize("given", [{"generation.samples": 3}, {"seed.a": 1}, {"store.a": 1}])
def test_a_setting_that_does_not_exist_is_refused(given: dict[str, int]) -> None:
    """Naming it."""
    with pytest.raises(SettingsError, match=next(iter(given)).partition(".")[0]):
        settle(given)
