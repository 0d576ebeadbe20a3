"""Records of any schema -> samples, by the column names in the settings.

For sources without a schema of their own (`sentences.py`, `huggingface.py`). Cells may be text, as
in a CSV, or typed, as in Parquet and JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eigenshift.datasets.records import (
    Record,
    Sample,
    is_missing,
    parse_cell,
    parse_label,
    require_text,
)
from eigenshift.settings import Role, SourceSettings


def list_required_columns(source: SourceSettings) -> list[str]:
    """The columns the settings name."""
    columns = source.columns
    named = (columns.text, columns.label, columns.language, columns.id)
    return [name for name in named if name is not None]


def make_column_mapper(source: SourceSettings) -> Callable[[Record], Sample]:
    """Return the mapping the settings ask for.

    A text without a label is refused only where labels are what the source is for.
    """
    columns = source.columns
    is_labelled = source.effective_role is Role.labelled

    def map_record(record: Record) -> Sample:
        values = record.values
        text = require_text(values.get(columns.text), columns.text)
        is_toxic, toxicity = None, None
        if columns.label is not None:
            value = values.get(columns.label)
            if is_labelled or not is_missing(value):
                is_toxic, toxicity = parse_label(value, columns.label, source.toxic_threshold)
        language = values.get(columns.language) if columns.language is not None else None
        return Sample(
            source_row=record.source_row,
            text=text,
            is_toxic=is_toxic,
            toxicity=toxicity,
            language=language if isinstance(language, str) else None,
            attributes={
                name: _parse_value(name, value, columns.id)
                for name, value in values.items()
                if name != columns.text
            },
        )

    return map_record


def _parse_value(name: str, value: Any, id_column: str | None) -> Any:
    is_cell = isinstance(value, str) and name not in ("id", id_column)
    return parse_cell(value) if is_cell else value
