"""Which language a text is in, where the source does not say.

Only Chinese is told from English, by script: enough for the datasets at hand, and no model to
download. Limits: every other language in another script counts as English, Japanese written mostly
in kanji counts as Chinese, and so does a mixed text once a fifth of its letters are Han. Name the
language in the settings (`language: tr`) or map a column where that matters.
"""

from __future__ import annotations

import re

# Unified ideographs with extension A, compatibility ideographs, extensions B and later, and 〇.
HAN = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
MIN_HAN_SHARE = 0.2
"""A Han character is a word or nearly, a Latin letter a part of one: hence not a half."""


def resolve_language(text: str, declared: str | None, setting: str) -> str:
    """Language of a text: its column's, else the setting's, else by script where that is 'auto'."""
    if declared is not None and (code := declared.strip().lower()):
        return code
    return detect_language(text) if setting == "auto" else setting


def detect_language(text: str) -> str:
    """Return 'zh' where at least a fifth of the letters are Han characters, else 'en'."""
    if text.isascii():
        return "en"
    n_han = len(HAN.findall(text))
    n_letters = sum(map(str.isalpha, text))
    return "zh" if n_han and n_han >= MIN_HAN_SHARE * n_letters else "en"
