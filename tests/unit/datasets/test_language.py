"""Telling Chinese from English by script."""

from __future__ import annotations

import pytest

from eigenshift.datasets.language import detect_language, resolve_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The kettle is warm.", "en"),
        ("茶杯很安静。", "zh"),
        ("我在用 Python 写一个小程序", "zh"),
        ("The sign says 茶, which means tea in Chinese.", "en"),
        ("Ünïcödé café", "en"),
        ("12345 !!! 😀", "en"),
        ("茶 123 😀", "zh"),
        ("", "en"),
    ],
    ids=lambda value: None,
)
def test_script_decides(text: str, language: str) -> None:
    """A fifth of Han characters among the letters makes a text Chinese."""
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("declared", "setting", "language"),
    [("TR ", "en", "tr"), (None, "de", "de"), ("", "de", "de"), (None, "auto", "zh")],
)
def test_column_then_setting_then_script(declared, setting, language) -> None:
    """A row's own code wins, then the settings, then the script."""
    assert resolve_language("茶", declared, setting) == language
