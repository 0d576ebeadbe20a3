"""ToxiCN 1.0 (Lu et al., ACL 2023) -> samples: Chinese posts with nested labels.

Reads `content` and `toxic`; all other columns go to the attributes, the one-hot columns and
`target`, which the file holds as Python lists in quotes, as lists.
"""

from __future__ import annotations

from eigenshift.datasets.delimited import read_delimited
from eigenshift.datasets.records import (
    Reader,
    Record,
    Sample,
    map_records,
    parse_attributes,
    parse_binary_label,
    parse_list,
)
from eigenshift.settings import SourceSettings

TEXT_COLUMN = "content"
LABEL_COLUMN = "toxic"


def make_toxicn_reader(source: SourceSettings) -> Reader:
    """Reader of ToxiCN files; its posts are Chinese unless the settings say otherwise."""
    language = "zh" if source.language == "auto" else source.language

    def map_record(record: Record) -> Sample:
        attributes = parse_attributes(record.values, leave_out=(TEXT_COLUMN,))
        return Sample(
            source_row=record.source_row,
            text=record.values[TEXT_COLUMN],
            is_toxic=parse_binary_label(record.values[LABEL_COLUMN], LABEL_COLUMN),
            language=language,
            attributes={
                name: parse_list(value) if isinstance(value, str) else value
                for name, value in attributes.items()
            },
        )

    return lambda uri: map_records(read_delimited(uri, (TEXT_COLUMN, LABEL_COLUMN)), map_record)
