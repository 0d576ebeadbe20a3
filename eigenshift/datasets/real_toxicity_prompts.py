"""RealToxicityPrompts (Gehman et al., EMNLP Findings 2020), prompts.jsonl -> samples.

The text is `prompt.text`. `prompt.toxicity` may be null: such a prompt is kept without a verdict,
not called non-toxic. Above the threshold is toxic, strictly, as the dataset's paper has it (the
other scored formats count the threshold itself). The continuation and all scores stay in the
attributes.
"""

from __future__ import annotations

from collections.abc import Mapping

from eigenshift.datasets.json_lines import read_json_lines
from eigenshift.datasets.records import (
    Reader,
    Reason,
    Record,
    RejectedRecordError,
    Sample,
    map_records,
    parse_score,
    require_text,
)
from eigenshift.settings import SourceSettings


def make_prompts_reader(source: SourceSettings) -> Reader:
    """Reader of prompts.jsonl and its subsets."""

    def map_record(record: Record) -> Sample:
        prompt = record.values.get("prompt")
        if not isinstance(prompt, Mapping):
            raise RejectedRecordError(
                Reason.missing_field, f"prompt: expected an object, found {type(prompt).__name__}"
            )
        text = require_text(prompt.get("text"), "prompt.text")
        value = prompt.get("toxicity")
        toxicity = None if value is None else parse_score(value, "prompt.toxicity")
        scores = {name: score for name, score in prompt.items() if name != "text"}
        return Sample(
            source_row=record.source_row,
            text=text,
            is_toxic=None if toxicity is None else toxicity > source.toxic_threshold,
            toxicity=toxicity,
            attributes={**record.values, "prompt": scores},
        )

    return lambda uri: map_records(read_json_lines(uri), map_record)
