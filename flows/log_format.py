"""How log lines look: for people, or one JSON object per line for machines.

Our messages carry their values as `key=value`; in JSON these are fields of their own.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime, timezone
from typing import Any

from eigenshift.base.errors import SettingsError

FIELD = re.compile(r"(\w+)=(\S+)")
NUMBER = re.compile(r"-?\d+(\.\d+)?")
FORMATS = ("text", "json")


def make_formatter(name: str) -> logging.Formatter:
    """The formatter of a name.

    Raises:
        SettingsError: There is none of that name.
    """
    if name not in FORMATS:
        raise SettingsError(
            f"EIGENSHIFT_LOG_FORMAT: expected {' or '.join(FORMATS)}, found {name!r}."
        )
    if name == "json":
        return JsonFormatter()
    return logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S")


class ScreenHandler(logging.Handler):
    """Writes lines to what stderr is at that moment: above a progress bar while there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - a log line ends no run; logging says so where it can
            self.handleError(record)


def has_own_screen() -> bool:
    """Whether our lines go to a terminal as lines for people, and a bar may stand below them."""
    handlers = logging.getLogger("eigenshift").handlers
    is_for_people = any(
        isinstance(handler, ScreenHandler) and not isinstance(handler.formatter, JsonFormatter)
        for handler in handlers
    )
    return is_for_people and sys.stderr.isatty()


class JsonFormatter(logging.Formatter):
    """One JSON object: time (UTC), level, logger, message and the message's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; an exception is its type only, since foreign messages may quote data."""
        message = record.getMessage()
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            "fields": {key: _parse(value) for key, value in FIELD.findall(message)},
        }
        if record.exc_info and record.exc_info[0] is not None:
            document["exception"] = record.exc_info[0].__name__
        return json.dumps(document, ensure_ascii=False)


def _parse(text: str) -> int | float | str:
    if not NUMBER.fullmatch(text):
        return text
    return float(text) if "." in text else int(text)
