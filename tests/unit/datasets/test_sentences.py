"""Plain sentences in every file type."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base.errors import DatasetError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", ',text,concept\n0,"Rivers, and\nlakes",geo\n1,Hills,geo\n'),
        ("s.tsv", "text\tconcept\nRivers, and\tgeo\nHills\tgeo\n"),
        ("s.jsonl", '{"text": "Rivers, and"}\n{"text": "Hills"}\n'),
        ("s.txt", "Rivers, and\nHills\n"),
        ("s.TXT", "Rivers, and\r\nHills"),
        ("wiki.tokens", "\ufeffRivers, and\nHills"),
    ],
)
def test_sentences_of_every_text_format(ingest, write, name: str, content: str) -> None:
    """CSV, TSV, JSON Lines and plain text give the same sentences, without labels."""
    outcome = ingest(format="sentences", uri=write(name, content))
    assert [text.split("\n")[0] for text in outcome.texts] == ["Rivers, and", "Hills"]
    assert outcome.samples["is_toxic"].to_pylist() == [None, None]
    assert outcome.rows[0]["role"] == "neutral"


def test_blank_lines_of_plain_text_are_rejected_rows(ingest, write) -> None:
    """Lines are rows, so the row numbers of a text file are its line numbers."""
    content = b"\n = Heading = \n\n \nA sentence .\nbad \xff byte\n"
    outcome = ingest(format="sentences", uri=write("wiki.txt", content))
    assert outcome.texts == [" = Heading = ", "A sentence ."]
    assert outcome.reasons == [
        (1, "empty_text"),
        (3, "empty_text"),
        (4, "empty_text"),
        (6, "bad_encoding"),
    ]
    assert outcome.attributes() == {}


def test_parquet_is_read_with_typed_values(ingest, tmp_path) -> None:
    """Other columns of a Parquet file keep their types; a null text is rejected."""
    table = pa.table(
        {
            "words": ["Rivers", None, "Hills"],
            "n": [1, 2, 3],
            "share": [0.5, float("nan"), None],
            "tags": [["a"], [], None],
            "raw": [b"\xff", b"", None],
        }
    )
    pq.write_table(table, tmp_path / "s.parquet")
    outcome = ingest(format="sentences", uri=str(tmp_path / "s.parquet"), columns={"text": "words"})
    assert outcome.texts == ["Rivers", "Hills"]
    assert outcome.reasons == [(2, "missing_field")]
    assert outcome.attributes() == {"n": 1, "share": 0.5, "tags": ["a"], "raw": "ff"}


def test_parquet_with_broken_utf8_loses_one_row(ingest, tmp_path) -> None:
    """A string column that is not UTF-8 everywhere rejects the rows concerned."""
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 3, 5, 8)))
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"tea\xff\xffjam"))
    pq.write_table(pa.table({"text": text}), tmp_path / "s.parquet")
    outcome = ingest(format="sentences", uri=str(tmp_path / "s.parquet"))
    assert outcome.texts == ["tea", "jam"]
    assert outcome.reasons == [(2, "bad_encoding")]


def test_parquet_without_the_text_column_stops_the_run(ingest, tmp_path) -> None:
    """The mapping names a column the file does not have."""
    pq.write_table(pa.table({"sentence": ["Rivers"]}), tmp_path / "s.parquet")
    with pytest.raises(DatasetError, match="expected the columns text, found sentence"):
        ingest(format="sentences", uri=str(tmp_path / "s.parquet"))


def test_damaged_parquet_stops_the_run(ingest, tmp_path, write) -> None:
    """A Parquet file cut short cannot be read at all."""
    pq.write_table(pa.table({"text": ["Rivers"]}), tmp_path / "whole.parquet")
    uri = write("cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    with pytest.raises(DatasetError, match="expected a Parquet file"):
        ingest(format="sentences", uri=uri)


def test_columns_are_mapped(ingest, write) -> None:
    """Text, label, language and id columns go where the settings say."""
    uri = write("s.csv", "key,body,verdict,tongue\n007,Tea,0.7,EN\n008,Thee,0,nl\n009,Tee,true,\n")
    outcome = ingest(
        format="sentences",
        uri=uri,
        role="labelled",
        language="de",
        columns={"text": "body", "label": "verdict", "language": "tongue", "id": "key"},
    )
    assert outcome.samples["is_toxic"].to_pylist() == [True, False, True]
    assert outcome.samples["toxicity"].to_pylist() == [0.7, None, None]
    assert outcome.samples["language"].to_pylist() == ["en", "nl", "de"]
    assert outcome.attributes() == {"key": "007", "verdict": 0.7, "tongue": "EN"}


def test_missing_labels_are_refused_only_where_labels_matter(ingest, write) -> None:
    """A labelled source rejects a text without label; prompts may go without."""
    uri = write("s.csv", "text,label\nTea,yes\nJam,\n")
    columns = {"label": "label"}
    labelled = ingest(format="sentences", uri=uri, role="labelled", columns=columns)
    assert labelled.reasons == [(2, "label_missing")]
    prompts = ingest(format="sentences", uri=uri, role="prompts", columns=columns)
    assert prompts.samples["is_toxic"].to_pylist() == [True, None]


def test_compressed_files_are_read_by_suffix(ingest, write) -> None:
    """The suffix before .gz names the type."""
    uri = write("s.csv.gz", gzip.compress(b"text\nRivers\nHills\n"))
    assert ingest(format="sentences", uri=uri).texts == ["Rivers", "Hills"]


def test_unknown_suffix_is_refused(ingest, write) -> None:
    """What a file holds is not guessed."""
    with pytest.raises(DatasetError, match=r"expected a file ending in .*found \.docx"):
        ingest(format="sentences", uri=write("s.docx", "Rivers"))
