"""The three Jigsaw schemas."""

from __future__ import annotations

import pytest

from eigenshift.base.errors import DatasetError
from tests.unit.datasets.conftest import ANY_ROWS

HEADER = "id,comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\n"


def test_toxic_comment_keeps_all_labels(ingest, write) -> None:
    """is_toxic comes from `toxic`; id and the other labels stay whole in the attributes."""
    uri = write("train.csv", HEADER + '0012,"Tea, please",1,0,1,0,1,0\nab12,Coffee,0,0,0,0,0,0\n')
    outcome = ingest(format="jigsaw", uri=uri)
    assert outcome.samples["is_toxic"].to_pylist() == [True, False]
    assert outcome.texts == ["Tea, please", "Coffee"]
    assert outcome.attributes() == {
        "id": "0012",
        "toxic": 1,
        "severe_toxic": 0,
        "obscene": 1,
        "threat": 0,
        "insult": 1,
        "identity_hate": 0,
    }
    row = outcome.rows[0]
    assert (row["dataset"], row["role"], row["split"]) == ("demo", "labelled", "train")
    assert (row["toxicity"], row["source_uri"], row["source_row"]) == (None, uri, 1)


def test_extra_columns_and_empty_ids(ingest, write) -> None:
    """An unnamed index, train_row and rows without an id are fine, as in the files around."""
    uri = write("head.csv", ",train_row,id,comment_text,toxic\n0,17,,First,0\n1,18,,Second,1\n")
    outcome = ingest(format="jigsaw", uri=uri)
    assert outcome.attributes() == {"column_0": 0, "train_row": 17, "id": "", "toxic": 0}


def test_unusable_labels_are_rejected_with_their_reason(ingest, write) -> None:
    """-1 is unscored, not non-toxic; a missing or odd label is no label."""
    rows = [("one", "0"), ("two", "-1"), ("three", ""), ("four", "2"), ("five", "maybe")]
    rows += [("six", "0.5"), ("seven", "1.0"), ("eight", " 1 "), ("nine", "１")]
    uri = write("t.csv", "comment_text,toxic\n" + "".join(f"{t},{y}\n" for t, y in rows))
    outcome = ingest(format="jigsaw", uri=uri, ingestion=ANY_ROWS)
    assert outcome.texts == ["one", "seven", "eight"]
    assert outcome.reasons == [
        (2, "unscored"),
        (3, "label_missing"),
        (4, "label_out_of_range"),
        (5, "label_unreadable"),
        (6, "label_out_of_range"),
        (9, "label_unreadable"),
    ]
    assert "maybe" not in str(outcome.rejected)


def test_test_set_is_joined_with_its_labels(ingest, write) -> None:
    """test.csv takes its labels from test_labels.csv by id, in any order."""
    uri = write("test.csv", "id,comment_text\na,Apples\nb,Pears\nc,Plums\n,Figs\nd,Dates\ne,Nuts\n")
    labels = write(
        "test_labels.csv",
        "id,toxic,insult\nc,-1,-1\nb,1,1\na,0,0\nd,0,0\nd,1,0\ne,1,0\ne,1,0\n,0,0\nz,1,1\nbroken\n",
    )
    outcome = ingest(format="jigsaw", uri=uri, labels_uri=labels, split="test")
    assert outcome.texts == ["Apples", "Pears", "Nuts"]
    assert outcome.samples["is_toxic"].to_pylist() == [False, True, True]
    assert outcome.attributes(1) == {"id": "b", "toxic": 1, "insult": 1}
    assert outcome.reasons == [(3, "unscored"), (4, "no_labels_row"), (5, "duplicate_id")]
    assert "rows 4 and 5" in outcome.rejected[2]["detail"]
    assert [file["rows_read"] for file in outcome.files] == [6, 0]
    assert outcome.files[1]["source_uri"] == labels


def test_labels_file_of_another_schema_stops_the_run(ingest, write) -> None:
    """The error names the labels file, not the data."""
    uri = write("test.csv", "id,comment_text\na,Apples\n")
    labels = write("labels.csv", "id,label\na,0\n")
    with pytest.raises(DatasetError, match=r"labels\.csv: expected the columns id, toxic"):
        ingest(format="jigsaw", uri=uri, labels_uri=labels)


def test_labels_file_without_rows_stops_the_run(ingest, write) -> None:
    """A labels file with nothing but a header is an error of its own."""
    uri = write("test.csv", "id,comment_text\na,Apples\n")
    labels = write("labels.csv", "id,toxic\n")
    with pytest.raises(DatasetError, match="expected labels"):
        ingest(format="jigsaw", uri=uri, labels_uri=labels)


def test_unintended_bias_counts_the_threshold_as_toxic(ingest, write) -> None:
    """The target is kept as toxicity; at the threshold a comment is toxic."""
    rows = "1,0.5,Bread,0.25,\n2,0.49,Butter,1e-05,4\n3,,Salt,,\n4,1.2,Oil,,\n"
    rows += "5,nope,Egg,,\n6,1,Jam,,\n"
    uri = write("train.csv", "id,target,comment_text,insult,rating\n" + rows)
    outcome = ingest(format="jigsaw_unintended_bias", uri=uri)
    assert outcome.samples["is_toxic"].to_pylist() == [True, False, True]
    assert outcome.samples["toxicity"].to_pylist() == [0.5, 0.49, 1.0]
    assert outcome.attributes(1) == {"id": "2", "target": 0.49, "insult": 1e-05, "rating": 4}
    assert outcome.reasons == [
        (3, "label_missing"),
        (4, "label_out_of_range"),
        (5, "label_unreadable"),
    ]


def test_unintended_bias_threshold_is_a_setting(ingest, write) -> None:
    """Another toxic_threshold moves the verdict, not the score."""
    uri = write("train.csv", "target,comment_text\n0.3,Bread\n0.2,Butter\n")
    outcome = ingest(format="jigsaw_unintended_bias", uri=uri, toxic_threshold=0.25)
    assert outcome.samples["is_toxic"].to_pylist() == [True, False]


def test_multilingual_takes_the_language_of_its_column(ingest, write) -> None:
    """The lang column wins over the setting; where it is empty the setting speaks."""
    uri = write("v.csv", "id,comment_text,lang,toxic\n0,Pan,es,0\n1,Pane,IT,1\n2,Ekmek,,0\n")
    outcome = ingest(format="jigsaw_multilingual", uri=uri, language="tr")
    assert outcome.samples["language"].to_pylist() == ["es", "it", "tr"]
    assert outcome.attributes() == {"id": "0", "lang": "es", "toxic": 0}


def test_wrong_schema_names_what_was_found(ingest, write) -> None:
    """A Jigsaw file read as ToxiCN says which columns it has."""
    uri = write("train.csv", HEADER + "1,Tea,0,0,0,0,0,0\n")
    with pytest.raises(DatasetError, match=r"expected the columns content, toxic, found id, comm"):
        ingest(format="toxicn", uri=uri)
