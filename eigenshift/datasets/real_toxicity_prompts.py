"""RealToxicityPrompts (Gehman et al., EMNLP Findings 2020) -> samples.

As published, prompts.jsonl, or as Parquet, a JSON array or a flat table, whose columns are
`prompt.text` and so on. The text is `prompt.text`. `prompt.toxicity` may be null: such a prompt is
kept without a verdict, not called non-toxic. Above the threshold is toxic, strictly, as the
dataset's paper has it (the other scored formats count the threshold itself). The continuation and
all scores stay in the attributes.
"""

from __future__ import annotations

from eigenshift.datasets.containers import Layout, read_records
from eigenshift.datasets.records import (
    Reader,
    Reason,
    Record,
    RejectedRecordError,
    Sample,
    describe_label,
    find_value,
    is_missing,
    leave_out_value,
    map_records,
    parse_object,
    parse_score,
    require_text,
)
from eigenshift.settings import SourceSettings

PROMPT = "prompt"
TEXT, TOXICITY = f"{PROMPT}.text", f"{PROMPT}.toxicity"


def make_prompts_reader(source: SourceSettings) -> Reader:
    """Reader of prompts.jsonl and its subsets."""

    def map_record(record: Record) -> Sample:
        values = record.values
        if TEXT not in values and parse_object(values.get(PROMPT)) is None:
            found = type(values.get(PROMPT)).__name__
            raise RejectedRecordError(
                Reason.missing_field, f"{PROMPT}: expected an object, found {found}"
            )
        text = require_text(find_value(values, TEXT), TEXT)
        value = find_value(values, TOXICITY)
        toxicity = None if is_missing(value) else parse_score(value, TOXICITY)
        return Sample(
            source_row=record.source_row,
            text=text,
            is_toxic=None if toxicity is None else toxicity > source.toxic_threshold,
            toxicity=toxicity,
            attributes=leave_out_value(values, TEXT),
            label=None if toxicity is None else describe_label(value),
        )

    return lambda uri: map_records(read_records(uri, (TEXT,), Layout.json_lines), map_record)
