"""ToxiCN 1.0 (Lu et al., ACL 2023) -> samples: Chinese posts with nested labels.

Reads `content` and `toxic`, of CSV as published or of JSON or Parquet; all other columns go to the
attributes, the one-hot columns and `target`, which a CSV holds as Python lists in quotes, as lists.
"""

from __future__ import annotations

from eigenshift.datasets.containers import read_records
from eigenshift.datasets.records import (
    Reader,
    Record,
    Sample,
    describe_label,
    map_records,
    parse_attributes,
    parse_binary_label,
    parse_list,
    require_text,
)
from eigenshift.settings import SourceSettings

TEXT_COLUMN = "content"
LABEL_COLUMN = "toxic"


def make_toxicn_reader(source: SourceSettings) -> Reader:
    """Reader of ToxiCN files; its posts are Chinese unless the settings say otherwise."""
    language = "zh" if source.language == "auto" else source.language

    def map_record(record: Record) -> Sample:
        attributes = parse_attributes(record.values, leave_out=(TEXT_COLUMN,))
        label = record.values.get(LABEL_COLUMN)
        return Sample(
            source_row=record.source_row,
            text=require_text(record.values.get(TEXT_COLUMN), TEXT_COLUMN),
            is_toxic=parse_binary_label(label, LABEL_COLUMN),
            language=language,
            attributes={
                name: parse_list(value) if isinstance(value, str) else value
                for name, value in attributes.items()
            },
            label=describe_label(label),
        )

    return lambda uri: map_records(read_records(uri, (TEXT_COLUMN, LABEL_COLUMN)), map_record)
