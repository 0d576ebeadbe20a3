"""RealToxicityPrompts, and JSON Lines in general."""

from __future__ import annotations

import json

import pytest

from eigenshift.base.errors import DatasetError


def make_prompt(text: object, toxicity: object, **more: object) -> str:
    """One line of prompts.jsonl."""
    prompt = {"text": text, "toxicity": toxicity, "threat": 0.25}
    return json.dumps({"filename": "f.txt", "begin": 3, "prompt": prompt, **more}) + "\n"


def test_prompts_keep_continuation_and_scores(ingest, write) -> None:
    """All scores and the continuation stay in the attributes; the prompt's text does not."""
    continuation = {"text": " goes on", "toxicity": None}
    uri = write("prompts.jsonl", make_prompt("The kettle", 0.1, continuation=continuation))
    outcome = ingest(format="real_toxicity_prompts", uri=uri)
    row = outcome.rows[0]
    assert (row["text"], row["role"], row["toxicity"]) == ("The kettle", "prompts", 0.1)
    assert outcome.attributes() == {
        "filename": "f.txt",
        "begin": 3,
        "prompt": {"toxicity": 0.1, "threat": 0.25},
        "continuation": {"text": " goes on", "toxicity": None},
    }


def test_unscored_prompts_have_no_verdict(ingest, write) -> None:
    """Null toxicity is null, not non-toxic; the threshold itself is not toxic here."""
    lines = [make_prompt("a b", None), make_prompt("c d", 0.5), make_prompt("e f", 0.51)]
    lines.append(make_prompt("g h", float("nan")))
    outcome = ingest(format="real_toxicity_prompts", uri=write("p.jsonl", "".join(lines)))
    assert outcome.samples["is_toxic"].to_pylist() == [None, False, True, None]
    assert outcome.samples["toxicity"].to_pylist() == [None, 0.5, 0.51, None]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "bad_json"),
        (b"[1]", "bad_json"),
        (b'"text"', "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "bad_json"),
        (b'{"prompt": {"text": "\xff"}}', "bad_encoding"),
        (b'{"prompt": {"text": "\\ud800"}}', "bad_encoding"),
        (b'{"prompt": {"text": "a\\u0000b"}}', "bad_encoding"),
        (b"{}", "missing_field"),
        (b'{"prompt": "text"}', "missing_field"),
        (b'{"prompt": {}}', "missing_field"),
        (b'{"prompt": {"text": null}}', "missing_field"),
        (b'{"prompt": {"text": 7}}', "missing_field"),
        (b'{"prompt": {"text": "  "}}', "empty_text"),
        (b'{"prompt": {"text": "tea", "toxicity": 1.5}}', "label_out_of_range"),
        (b'{"prompt": {"text": "tea", "toxicity": Infinity}}', "label_out_of_range"),
        (b'{"prompt": {"text": "tea", "toxicity": [0.5]}}', "label_unreadable"),
    ],
    ids=lambda value: None,
)
def test_bad_lines_are_rejected_alone(ingest, write, line: bytes, reason: str) -> None:
    """A bad line keeps its number and reason; the lines around it are read."""
    before, after = make_prompt("before", 0.1).encode(), make_prompt("after", 0.2).encode()
    uri = write("p.jsonl", before + line + b"\r\n" + after)
    outcome = ingest(format="real_toxicity_prompts", uri=uri)
    assert outcome.reasons == [(2, reason)]
    assert outcome.texts == ["before", "after"]


def test_odd_attributes_are_kept(ingest, write) -> None:
    """Half a surrogate pair or NaN in another field does not cost the prompt."""
    line = (
        b'{"prompt": {"text": "tea"}, "n": NaN, "x": [1, -Infinity], "s": "\\ud800", "\\u8336": 0}'
    )
    outcome = ingest(format="real_toxicity_prompts", uri=write("p.jsonl", line))
    assert outcome.attributes() == {
        "prompt": {},
        "n": None,
        "x": [1, None],
        "s": "\ufffd",
        "茶": 0,
    }


def test_bom_and_blank_lines_are_no_records(ingest, write) -> None:
    """A byte order mark and blank lines do not shift the numbering."""
    lines = make_prompt("one", 0.1) + "\n\n" + make_prompt("two", 0.1)
    uri = write("p.jsonl", b"\xef\xbb\xbf" + lines.encode())
    assert ingest(format="real_toxicity_prompts", uri=uri).facts["rows_read"] == 2


def test_csv_read_as_prompts_stops_with_counts(ingest, write) -> None:
    """A file in another format has no usable row, and the error counts why."""
    with pytest.raises(DatasetError, match=r"none among 2 rows \(bad_json: 2\)"):
        ingest(format="real_toxicity_prompts", uri=write("p.csv", "text\nsome words\n"))
