"""Labels of mapped columns, and what stops a run whose labels are none."""

from __future__ import annotations

import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.labels import read_label
from eigenshift.datasets.records import RejectedRecordError
from eigenshift.settings import ColumnMapping

NAMED = ColumnMapping(label="y", toxic_labels=("0", "Yes"), nontoxic_labels=("2", "no"))
PLAIN = ColumnMapping(label="y")
PERCENT = ColumnMapping(label="y", label_scale=100)


@pytest.mark.parametrize(
    ("value", "columns", "names", "expected"),
    [
        (0, NAMED, None, (True, None)),
        ("0", NAMED, None, (True, None)),
        (2.0, NAMED, None, (False, None)),
        ("YES", NAMED, None, (True, None)),
        (50, PERCENT, None, (True, 0.5)),
        ("12,5", PERCENT, None, (False, 0.125)),
        (1, PLAIN, ["hate", "normal"], (False, None)),
        ("0", PLAIN, ["hate", "normal"], (True, None)),
        ("hate", PLAIN, ["hate", "normal"], (True, None)),
        (1, PLAIN, ["0", "1"], (True, None)),
        ("0,5", PLAIN, None, (True, 0.5)),
        ("1,000", PLAIN, None, (True, 1.0)),
        ("49%", PLAIN, None, (False, 0.49)),
        ("Not Toxic", PLAIN, None, (False, None)),
    ],
)
def test_labels_are_read(value, columns, names, expected) -> None:
    """By the classes in the settings, by the names in the file, by the scale, or as they are."""
    assert read_label(value, columns, 0.5, names) == expected


@pytest.mark.parametrize(
    ("value", "columns", "names", "reason"),
    [
        (1, NAMED, None, "label_unreadable"),
        (None, NAMED, None, "label_missing"),
        (float("nan"), NAMED, None, "label_missing"),
        (101, PERCENT, None, "label_out_of_range"),
        (-1, PERCENT, None, "unscored"),
        (-1, PLAIN, ["hate", "normal"], "unscored"),
        (0, PLAIN, ["negative", "positive"], "label_unreadable"),
        ("2,500", PLAIN, None, "label_unreadable"),
        ("1.000,5", PLAIN, None, "label_unreadable"),
        ("120%", PLAIN, None, "label_out_of_range"),
    ],
)
def test_what_is_no_label_is_not_guessed(value, columns, names, reason) -> None:
    """Classes that are not named, names that are not known, numbers that may be thousands."""
    with pytest.raises(RejectedRecordError) as caught:
        read_label(value, columns, 0.5, names)
    assert caught.value.reason == reason


@pytest.fixture
def label(ingest, write):
    """Ingest texts with these labels; `ingestion` and columns are settings."""

    def ingest_labels(*cells: str, ingestion=None, **columns):
        content = "text,y\n" + "".join(f"text {n},{cell}\n" for n, cell in enumerate(cells))
        return ingest(
            format="sentences",
            role="labelled",
            uri=write("t.csv", content),
            columns={"label": "y", **columns},
            ingestion=ingestion,
        )

    return ingest_labels


def test_a_third_class_stops_the_run(label) -> None:
    """Formerly class 0 (hate) was read as not toxic, and class 2 (neither) was rejected."""
    cells = ["1"] * 60 + ["2"] * 20 + ["0"] * 8
    with pytest.raises(DatasetError, match=r"20 of 88 rows .*met: 1 \(60\), 2 \(20\), 0 \(8\)"):
        label(*cells)
    named = label(*cells, toxic_labels=[0, 1], nontoxic_labels=[2])
    assert named.samples["is_toxic"].to_pylist() == [True] * 60 + [False] * 20 + [True] * 8


def test_the_share_of_unknown_labels_is_a_setting(label) -> None:
    """A few among many are rejected rows; the bound itself is allowed."""
    cells = ["0"] * 60 + ["1"] * 39 + ["7"]
    assert label(*cells).reasons == [(100, "label_out_of_range")]
    with pytest.raises(DatasetError, match="1 of 100 rows"):
        label(*cells, ingestion={"max_unknown_labels": 0.009})
    assert label(*cells[:9], "7", "8", ingestion={"max_unknown_labels": 0.2}).facts["samples"] == 9


def test_a_column_of_texts_is_not_shown(label) -> None:
    """Of a label column that holds texts only the sizes are told."""
    with pytest.raises(DatasetError, match=r"text of 6 characters \(2\)") as caught:
        label("kettle", "kettle")
    assert "kettle" not in str(caught.value)


def test_minus_one_may_say_not_toxic(label) -> None:
    """With 1 alone it cannot be told; with 0 beside it, it is a row that was not scored."""
    with pytest.raises(DatasetError, match="labels of both kinds"):
        label("1", "-1", "-1")
    assert label("1", "-1", "0").reasons == [(2, "unscored")]
    named = label("1", "-1", toxic_labels=[1], nontoxic_labels=[-1])
    assert named.samples["is_toxic"].to_pylist() == [True, False]


def test_a_file_that_is_mostly_rejected_stops_the_run(ingest, write) -> None:
    """Rows marked as not scored do not count: of Kaggle's test set they are more than half."""
    rows = "a,0\nb,\nc,\nd,\n"
    uri = write("t.csv", "comment_text,toxic\n" + rows)
    with pytest.raises(DatasetError, match=r"at most 50% .*3 rejected among 4 .*met: 0 \(1\)"):
        ingest(format="jigsaw", uri=uri)
    assert ingest(format="jigsaw", uri=uri, ingestion={"max_rejected_share": 0.75}).texts == ["a"]
    unscored = write("u.csv", "comment_text,toxic\na,0\nb,-1\nc,-1\nd,-1\n")
    assert ingest(format="jigsaw", uri=unscored).facts["rejected"] == {"unscored": 3}


def test_blank_lines_of_plain_text_are_expected(ingest, write) -> None:
    """WikiText has a blank line for each that is none; in a table an empty cell counts."""
    assert ingest(format="sentences", uri=write("t.txt", "one\n\n\n\n")).texts == ["one"]
    with pytest.raises(DatasetError, match="empty_text: 3"):
        ingest(format="sentences", uri=write("t.csv", 'text\none\n""\n""\n""\n'))
