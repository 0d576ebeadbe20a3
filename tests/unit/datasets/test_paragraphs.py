"""Paragraphs: what counts as one, and how tokenised text is written out."""

from __future__ import annotations

import gzip

import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.paragraphs import undo_tokenisation

WIKITEXT = """
 = Rivers =

 The river is 3 @.@ 5 km long , and " well @-@ known " ( in the north ) . It was the boat 's home .
 A single sentence .
 The <unk> is open . It was calm .
"""


def test_paragraphs_are_kept_and_all_else_is_a_rejected_row(ingest, write) -> None:
    """Of WikiText as it is published: blanks, headings, single sentences and unknown words go."""
    uri = write("wiki.train.tokens.gz", gzip.compress(WIKITEXT.encode()))
    outcome = ingest(format="paragraphs", uri=uri)
    assert outcome.texts == [
        'The river is 3.5 km long, and "well-known" (in the north). It was the boat\'s home.'
    ]
    assert outcome.reasons == [
        (1, "empty_text"),
        (2, "not_a_paragraph"),
        (3, "empty_text"),
        (5, "not_a_paragraph"),
        (6, "not_a_paragraph"),
    ]
    assert outcome.rows[0]["role"] == "neutral"


@pytest.mark.parametrize(
    "text",
    [
        'The lake was calm. Nobody spoke, and "nothing" moved.',
        "湖面很平静。没有人说话。",
        "It cost $ 5 (five).\nThe rest . . . was free.",
    ],
)
def test_text_as_people_write_it_is_left_alone(text: str) -> None:
    """Chinese too; an odd space is no tokenisation."""
    assert undo_tokenisation(text) == text


def test_other_columns_and_chinese_paragraphs_are_read_as_sentences_are(ingest, write) -> None:
    """The column mapping is that of plain sentences."""
    content = "words\n湖面很平静。没有人说话。\n湖面很平静。\n"
    outcome = ingest(format="paragraphs", uri=write("p.csv", content), columns={"text": "words"})
    assert outcome.texts == ["湖面很平静。没有人说话。"]
    assert outcome.rows[0]["language"] == "zh"


def test_a_file_of_single_sentences_is_refused_with_the_reason(ingest, write) -> None:
    """The counts say that it is no damage; `sentences` would read it."""
    with pytest.raises(DatasetError, match=r"not_a_paragraph: 2"):
        ingest(format="paragraphs", uri=write("s.txt", "The lake is calm.\nRivers run.\n"))
