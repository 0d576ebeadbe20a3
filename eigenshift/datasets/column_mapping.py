"""Records of any schema -> samples, by the column names in the settings.

For sources without a schema of their own (`sentences.py`, `huggingface.py`). Cells may be text, as
in a CSV, or typed, as in Parquet and JSON; of a nested column a field is named with a dot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eigenshift.datasets.labels import read_label
from eigenshift.datasets.records import (
    Record,
    Sample,
    describe_label,
    find_value,
    is_missing,
    leave_out_value,
    parse_cell,
    require_text,
)
from eigenshift.settings import Role, SourceSettings


def list_required_columns(source: SourceSettings) -> list[str]:
    """The columns the settings name."""
    columns = source.columns
    named = (columns.text, columns.label, columns.language, columns.id)
    return [name for name in named if name is not None]


def make_column_mapper(
    source: SourceSettings, class_names: Mapping[str, Sequence[str]] | None = None
) -> Callable[[Record], Sample]:
    """Return the mapping the settings ask for.

    A text without a label is refused only where labels are what the source is for.

    Args:
        source: Settings.
        class_names: Of numbered classes, by column; may be filled after this call.
    """
    columns = source.columns
    is_labelled = source.effective_role is Role.labelled

    def map_record(record: Record) -> Sample:
        values = record.values
        text = require_text(find_value(values, columns.text), columns.text)
        is_toxic, toxicity, label = None, None, None
        if columns.label is not None:
            value = find_value(values, columns.label)
            if is_labelled or not is_missing(value):
                names = (class_names or {}).get(columns.label)
                is_toxic, toxicity = read_label(value, columns, source.toxic_threshold, names)
                label = describe_label(value)
        found = None if columns.language is None else find_value(values, columns.language)
        return Sample(
            source_row=record.source_row,
            text=text,
            is_toxic=is_toxic,
            toxicity=toxicity,
            language=found if isinstance(found, str) else None,
            attributes={
                name: _parse_value(name, value, columns.id)
                for name, value in leave_out_value(values, columns.text).items()
            },
            label=label,
        )

    return map_record


def _parse_value(name: str, value: Any, id_column: str | None) -> Any:
    is_cell = isinstance(value, str) and name not in ("id", id_column)
    return parse_cell(value) if is_cell else value
