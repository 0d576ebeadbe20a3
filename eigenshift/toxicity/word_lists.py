"""Lists of words, and whether a text contains one.

Words of scripts with spaces count at word boundaries only, Chinese ones wherever they occur. Case
and width of letters do not matter. Errors name the file and the line, never a word.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from eigenshift.base.errors import SettingsError
from eigenshift.base.text import fold_text
from eigenshift.datasets.language import HAN
from eigenshift.store.source_files import fetch_path, has_protocol

WORD_COLUMNS = ("word", "text")
IDENTITY_PATH = Path(__file__).parent / "identity_terms.yaml"
LETTER = r"[^\W_\u3007\u3400-\u4dbf\u4e00-\u9fff]"
"""A letter or digit of a script with spaces: what may not touch a word."""


class WordList:
    """Words to look for in texts.

    Args:
        words: Without regard to case; blank ones are left out.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = frozenset(filter(None, map(fold_text, words)))
        spaced = sorted(word for word in self._words if not HAN.search(word))
        han = sorted(word for word in self._words if HAN.search(word))
        forms = [rf"(?<!{LETTER})(?:{_join(spaced)})(?!{LETTER})"] if spaced else []
        forms += [_join(han)] if han else []
        self._pattern = re.compile("|".join(forms)) if forms else None

    def __len__(self) -> int:
        """How many different words."""
        return len(self._words)

    def __repr__(self) -> str:
        """Never the words themselves."""
        return f"WordList({len(self._words)} words)"

    def __contains__(self, text: str) -> bool:
        """Whether a text is one of the words, but for case and surrounding spaces."""
        return fold_text(text) in self._words

    def occurs_in(self, text: str) -> bool:
        """Whether any of the words occurs in a text."""
        return self._pattern is not None and bool(self._pattern.search(fold_text(text)))


def require_word_file(uri: str, setting: str) -> None:
    """Refuse a path that is no file; what is remote is found out when it is fetched.

    Raises:
        SettingsError: There is no such file.
    """
    if not has_protocol(uri) and not Path(uri).is_file():
        raise SettingsError(
            f"{uri}: expected a file of words, found none. Check the path ({setting})."
        )


def read_words(uri: str, setting: str = "scorer.words") -> list[str]:
    """Read a file of words.

    Text with a word a line (lines that begin with `# ` are comments), `.csv` with a column `word`
    or `text`, or `.json` with an array, or an object whose keys are the words.

    Args:
        uri: A path or URL.
        setting: Where it was given, for errors.

    Raises:
        SettingsError: There is no such file, it is not of its format, or it holds no word.
    """
    require_word_file(uri, setting)
    path = fetch_path(uri)
    try:
        words = [word for word in _parse(path) if word.strip()]
    except (ValueError, csv.Error) as error:  # a JSON or Unicode error is a ValueError
        raise SettingsError(
            f"{uri}: expected UTF-8 text with a word a line, a .csv with a column "
            f"{' or '.join(WORD_COLUMNS)}, or a .json array or object of words, found "
            f"{type(error).__name__}. Convert the file."
        ) from None  # the error would quote the file
    if not words:
        raise SettingsError(f"{uri}: expected words, found none. Check {setting}.")
    return words


def _parse(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        document: Any = json.loads(text)
        if not isinstance(document, list | dict) or not all(isinstance(x, str) for x in document):
            raise ValueError
        yield from document
    elif path.suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        columns = [name for name in WORD_COLUMNS if name in (rows.fieldnames or ())]
        if not columns:
            raise ValueError
        yield from (row[columns[0]] or "" for row in rows)
    else:
        yield from (line for line in text.splitlines() if not line.startswith("# "))


@lru_cache(maxsize=1)
def load_identity_terms() -> WordList:
    """The bundled neutral words for groups of people, in English and Chinese."""
    document = yaml.safe_load(IDENTITY_PATH.read_text(encoding="utf-8"))
    return WordList(word for words in document.values() for word in words)


def _join(words: list[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
