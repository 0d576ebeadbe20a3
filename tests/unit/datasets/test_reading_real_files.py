"""The real, offensive files: counts and digests only, never a row.

Comparisons are reduced to booleans before they are asserted: a failing assertion on texts would
print them. Skipped where the files are absent.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from functools import cache

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.datasets.delimited import read_delimited
from eigenshift.datasets.records import Record

FILES = [
    ("jigsaw", "jigsaw/train.csv", 10_719, {"contradictory_labels": 6, "duplicate_text": 10}),
    ("jigsaw", "jigsaw/test_labelled.csv", 1_002, {}),
    ("jigsaw", "jigsaw/train_head.csv", 15_959, {"contradictory_labels": 2, "duplicate_text": 5}),
    ("jigsaw", "jigsaw/fixtures/detoxify_test.csv", 51, {"unscored": 25}),
    ("jigsaw", "jigsaw/fixtures/detoxify_train.csv", 282, {}),
    ("jigsaw", "jigsaw/fixtures/ml-act_train.csv", 49, {}),
    ("jigsaw", "jigsaw/fixtures/ml-aura_train.csv", 16, {}),
    ("jigsaw", "other/civil_comments/demo_data_sample.csv", 1_000, {}),
    (
        "jigsaw_multilingual",
        "jigsaw/multilingual_validation.csv.gz",
        8_000,
        {"duplicate_text": 1},
    ),
    ("toxicn", "toxicn/ToxiCN_1.0.csv", 9_633, {}),
    ("toxic_spans", "other/toxic_spans/tsd_trial.csv", 690, {}),
    ("toxic_spans", "other/toxic_spans/tsd_train.csv", 7_938, {"duplicate_text": 11}),
    ("real_toxicity_prompts", "rtp/prompts_quark_val.jsonl", 3_975, {}),
    ("real_toxicity_prompts", "rtp/prompts_decodingtrust_toxic.jsonl", 943, {}),
    ("real_toxicity_prompts", "rtp/prompts_decodingtrust_nontoxic.jsonl", 958, {}),
    ("sentences", "wiki/wikipedia_sentences.csv", 89, {"text_too_long": 1}),
    (
        "sentences",
        "wiki/wikitext-2/wiki.valid.tokens",
        3_760,
        {"duplicate_text": 143, "empty_text": 1_299},
    ),
    (
        "paragraphs",
        "wiki/wikipedia_sentences.csv",
        89,
        {"not_a_paragraph": 11, "text_too_long": 1},
    ),
    (
        "paragraphs",
        "wiki/wikitext-2/wiki.train.tokens.gz",
        36_718,
        {"duplicate_text": 3, "empty_text": 12_951, "not_a_paragraph": 21_514},
    ),
]


@pytest.fixture(scope="module")
def ingest_real(ingest, real_data):
    """Ingest a real file, once however many tests look at it."""

    @cache
    def ingest_file(format: str, path: str):
        return ingest(format=format, uri=str(real_data / path))

    return ingest_file


@pytest.mark.parametrize(("format", "path", "n_rows", "rejected"), FILES)
def test_rows_of_the_real_files(ingest_real, format, path, n_rows, rejected) -> None:
    """Row counts are those of the data's README, and every row is accounted for."""
    outcome = ingest_real(format, path)
    assert outcome.facts == {
        "rows_read": n_rows,
        "samples": n_rows - sum(rejected.values()),
        "rejected": rejected,
        "files": 1,
    }


@pytest.mark.parametrize(
    ("format", "path", "n_toxic", "n_nontoxic"),
    [
        ("toxicn", "toxicn/ToxiCN_1.0.csv", 5_182, 4_451),
        ("jigsaw", "jigsaw/fixtures/detoxify_test.csv", 2, 24),
        ("real_toxicity_prompts", "rtp/prompts_quark_val.jsonl", 979, 2_981),
    ],
)
def test_labels_of_the_real_files(ingest_real, format, path, n_toxic, n_nontoxic) -> None:
    """Labels add up to the balance given in the data's README; the rest has no verdict."""
    labels = ingest_real(format, path).samples["is_toxic"].to_pylist()
    assert (labels.count(True), labels.count(False)) == (n_toxic, n_nontoxic)


LABELLED = {
    "other/surge/toxicity_en.csv": ({"label": "is_toxic"}, 501, 498),
    "other/toxigen/toxiGen.json.gz": ({"label": "label"}, 2_767, 3_747),
    "other/hatecheck/test_suite_cases.csv": (
        {"text": "test_case", "label": "label_gold"},
        2_563,
        1_165,
    ),
    "other/davidson/labeled_data.csv": (
        {
            "text": "tweet",
            "label": "class",
            "toxic_labels": [0, 1],
            "nontoxic_labels": [2],
        },
        20_620,
        4_163,
    ),
}
"""Labels in words, and classes that the settings name; counts are those of the data's README."""


@pytest.mark.parametrize("path", LABELLED)
def test_labels_in_words_and_classes(ingest, real_data, path) -> None:
    """Every row has the verdict its label says; repeats are counted as rejected."""
    columns, n_toxic, n_nontoxic = LABELLED[path]
    uri = str(real_data / path)
    outcome = ingest(format="sentences", role="labelled", uri=uri, columns=columns)
    labels = outcome.samples["is_toxic"].to_pylist()
    assert set(outcome.facts["rejected"]) <= {"duplicate_text", "contradictory_labels"}
    n_rejected = sum(outcome.facts["rejected"].values())
    assert n_toxic - n_rejected <= labels.count(True) <= n_toxic
    assert n_nontoxic - n_rejected <= labels.count(False) <= n_nontoxic
    assert len(labels) + n_rejected == n_toxic + n_nontoxic


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("other/davidson/labeled_data.csv", {"text": "tweet", "label": "class"}),
        ("other/davidson/labeled_data.csv", {"text": "tweet", "label": "hate_speech"}),
        ("other/toxigen/toxiGen.json.gz", {"label": "toxicity_score"}),
    ],
)
def test_columns_of_classes_counts_and_ratings_stop_the_run(
    ingest, real_data, path, columns
) -> None:
    """Formerly class 0, hate speech, was read as not toxic."""
    with pytest.raises(DatasetError, match=r"expected labels, found \d+ of \d+ rows with others"):
        ingest(format="sentences", role="labelled", uri=str(real_data / path), columns=columns)


def test_prompts_are_the_same_in_every_container(ingest, ingest_real, real_data, tmp_path) -> None:
    """As lines, as an array, as Parquet, and in a zip file under another name."""
    path = "rtp/prompts_decodingtrust_toxic.jsonl"
    expected = ingest_real("real_toxicity_prompts", path).samples.drop(["source_uri"])
    content = real_data.joinpath(path).read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    (tmp_path / "array.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.csv")
    with zipfile.ZipFile(tmp_path / "packed.jsonl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("prompts.jsonl", content)
    for name in ("array.json", "table.csv", "packed.jsonl"):
        samples = ingest(format="real_toxicity_prompts", uri=str(tmp_path / name)).samples
        is_same = samples.drop(["source_uri", "attributes"]) == expected.drop(["attributes"])
        assert is_same


def test_languages_of_the_real_files(ingest, ingest_real, real_data) -> None:
    """By script, Jigsaw is English but for a handful, and a Chinese set is Chinese."""
    english = ingest_real("jigsaw", "jigsaw/train_head.csv")
    assert english.samples["language"].to_pylist().count("zh") <= 5
    columns = {"text": "TEXT", "label": "label"}
    uri = str(real_data / "other/cold/dev.csv")
    chinese = ingest(format="sentences", uri=uri, role="labelled", columns=columns)
    assert chinese.samples["language"].to_pylist().count("en") <= 5


def test_lists_of_the_real_toxicn_file(ingest_real) -> None:
    """Every list-valued cell of ToxiCN is a list of numbers afterwards."""
    outcome = ingest_real("toxicn", "toxicn/ToxiCN_1.0.csv")
    shapes = set()
    for text in outcome.samples["attributes"].to_pylist():
        row = json.loads(text)
        names = ("toxic_one_hot", "toxic_type_one_hot", "expression_one_hot", "target")
        shapes.add(tuple(isinstance(row[name], list) and len(row[name]) for name in names))
    assert shapes == {(2, 3, 4, 6)}


@pytest.mark.parametrize("path", ["jigsaw/train.csv", "jigsaw/train_head.csv"])
def test_csv_reader_agrees_with_pandas(real_data, path) -> None:
    """Every cell of every row is what pandas' own C parser reads."""
    uri = str(real_data / path)
    ours = hashlib.sha256()
    for record in read_delimited(uri, ("comment_text",)):
        assert isinstance(record, Record)
        ours.update(json.dumps(list(record.values.values())).encode())
    frame = pandas.read_csv(uri, dtype=str, keep_default_na=False, lineterminator="\n")
    theirs = hashlib.sha256()
    for cells in frame.itertuples(index=False):
        theirs.update(json.dumps(list(cells)).encode())
    assert ours.hexdigest() == theirs.hexdigest()


def test_samples_hold_the_texts_of_the_file(ingest_real, real_data) -> None:
    """The texts of the samples are those Python's csv finds at their row numbers."""
    path = real_data / "jigsaw/train.csv"
    with path.open(encoding="utf-8", newline="") as handle:
        texts = [row["comment_text"] for row in csv.DictReader(handle)]
    samples = ingest_real("jigsaw", "jigsaw/train.csv").samples
    rows = samples["source_row"].to_pylist()
    is_same = samples["text"].to_pylist() == [texts[row - 1] for row in rows]
    assert is_same
