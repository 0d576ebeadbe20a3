"""What holds for every format: accounting, repetition, sharding, digests, damage."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import logging
from itertools import count

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eigenshift.base.errors import DatasetError
from eigenshift.datasets import reading
from eigenshift.datasets.reading import digest_source
from eigenshift.datasets.records import Rejection, Sample
from eigenshift.datasets.stages import INGEST_SOURCE
from eigenshift.settings import SourceSettings
from tests.unit.datasets.conftest import ANY_ROWS

HEADER = "comment_text,toxic\n"
FILE_NUMBERS = count()


def make_csv(*rows: tuple[str, int]) -> str:
    """A Jigsaw file of texts and labels."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("comment_text", "toxic"), *rows])
    return buffer.getvalue()


def test_repeated_texts_keep_the_first(ingest, write) -> None:
    """Texts equal after normalisation are repeats, whatever their case, width or spaces."""
    rows = [("Green tea", 0), ("green  TEA\n", 0), ("Ｇｒｅｅｎ tea", 0), ("Green teas", 0)]
    outcome = ingest(format="jigsaw", uri=write("t.csv", make_csv(*rows)))
    assert outcome.texts == ["Green tea", "Green teas"]
    assert outcome.reasons == [(2, "duplicate_text"), (3, "duplicate_text")]
    assert outcome.rejected[0]["detail"] == "same text as row 1 of t.csv"


def test_contradictory_labels_reject_every_occurrence(ingest, write) -> None:
    """Where equal texts have opposite labels none is kept, and each names an opposite row."""
    rows = [("tea", 0), ("jam", 1), ("TEA", 0), ("tea", 1), ("oil", 0)]
    outcome = ingest(format="jigsaw", uri=write("t.csv", make_csv(*rows)))
    assert outcome.texts == ["jam", "oil"]
    assert outcome.reasons == [(row, "contradictory_labels") for row in (1, 3, 4)]
    named = [row["detail"].split(" at ")[1] for row in outcome.rejected]
    assert named == ["row 4 of t.csv", "row 4 of t.csv", "row 1 of t.csv"]


def test_unlabelled_repeats_contradict_nothing(ingest, write) -> None:
    """A text without a label repeats another, but has no opinion on it."""
    uri = write("t.csv", "text,y\ntea,\ntea,1\n")
    outcome = ingest(format="sentences", uri=uri, role="prompts", columns={"label": "y"})
    assert outcome.reasons == [(2, "duplicate_text")]


def test_repeats_are_judged_over_all_files(ingest, write, tmp_path) -> None:
    """A text may not come back in a later file of the same source."""
    write("part-1.csv", make_csv(("tea", 0), ("jam", 0)))
    write("part-2.csv", make_csv(("oil", 0), ("tea", 0), ("jam", 1)))
    outcome = ingest(format="jigsaw", uri=str(tmp_path / "part-*.csv"))
    assert outcome.texts == ["tea", "oil"]
    assert [(row["source_uri"][-10:], row["source_row"]) for row in outcome.rejected] == [
        ("part-1.csv", 2),
        ("part-2.csv", 2),
        ("part-2.csv", 3),
    ]
    assert outcome.rejected[1]["detail"] == "same text as row 1 of part-1.csv"
    assert [file["rows_read"] for file in outcome.files] == [2, 3]


def test_a_file_of_repeats_only_is_no_error(ingest, write, tmp_path, caplog) -> None:
    """A second copy of a file adds nothing, which is logged, but is usable text."""
    for name in ("a.csv", "b.csv"):
        write(name, make_csv(("tea", 0)))
    with caplog.at_level(logging.WARNING):
        outcome = ingest(format="jigsaw", uri=str(tmp_path / "*.csv"))
    assert outcome.facts["rejected"] == {"duplicate_text": 1}
    assert "file adds no sample" in caplog.text


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "an empty file"),
        (HEADER, "no rows at all"),
        (HEADER + "tea,-1\njam,-1\n,0\n", r"none among 3 rows \(unscored: 2, empty_text: 1\)"),
        (HEADER + "tea,0\ntea,1\n", r"none among 2 rows \(contradictory_labels: 2\)"),
    ],
    ids=["empty", "header-only", "unusable", "contradictory"],
)
def test_sources_without_a_usable_row_stop_the_run(ingest, write, content, found) -> None:
    """Nothing usable is an error with the counts per reason."""
    with pytest.raises(DatasetError, match=found):
        ingest(format="jigsaw", uri=write("t.csv", content))


def test_one_unusable_file_among_good_ones_stops_the_run(ingest, write, tmp_path) -> None:
    """The error names the file, not the glob."""
    write("a.csv", make_csv(("tea", 0)))
    write("b.csv", make_csv(("jam", -1)))
    with pytest.raises(DatasetError, match=r"b\.csv: expected at least one usable row"):
        ingest(format="jigsaw", uri=str(tmp_path / "*.csv"))


@pytest.mark.parametrize("blank", ["", "  \t", "\u3000", "\u200b\ufeff", "\u00a0\n"])
def test_blank_texts_are_rejected(ingest, write, blank: str) -> None:
    """Spaces of any script and characters without a glyph are no text."""
    outcome = ingest(format="jigsaw", uri=write("t.csv", make_csv((blank, 0), ("tea", 0))))
    assert outcome.reasons == [(1, "empty_text")]


def test_long_texts_are_rejected_by_character(ingest, write) -> None:
    """The limit counts characters, not bytes, and is itself allowed."""
    uri = write("t.csv", make_csv(("茶" * 10, 0), ("茶" * 11, 0)))
    outcome = ingest(format="jigsaw", uri=uri, ingestion={"max_characters": 10})
    assert outcome.reasons == [(2, "text_too_long")]
    assert outcome.rejected[0]["detail"] == "expected at most 10 characters, found 11"


def test_nul_bytes_are_rejected(ingest, write) -> None:
    """A NUL is a sign of damage, and many tools would cut the text there."""
    outcome = ingest(format="jigsaw", uri=write("t.csv", HEADER.encode() + b"a\0b,0\ntea,0\n"))
    assert outcome.reasons == [(1, "bad_encoding")]


def test_sample_ids_follow_the_text_not_the_order(ingest, write) -> None:
    """An id is the dataset's name and a digest of the normalised text."""
    rows = [("Green tea", 0), ("Jam", 1), ("Oil", 0)]
    one = ingest(format="jigsaw", uri=write("1.csv", make_csv(*rows)))
    two = ingest(format="jigsaw", uri=write("2.csv", make_csv(*rows[::-1])))
    ids = one.samples["sample_id"].to_pylist()
    assert ids == two.samples["sample_id"].to_pylist()[::-1]
    assert ids[0] == "demo-" + hashlib.sha256(b"green tea").hexdigest()[:16]


def test_shards_are_full_but_the_last(ingest, write) -> None:
    """Shards hold rows_per_shard samples each, rejected rows not counted."""
    rows = [(f"text {i // 2 if i < 6 else i}", 0) for i in range(13)]
    uri = write("t.csv", make_csv(*rows))
    outcome = ingest(format="jigsaw", uri=uri, ingestion={"rows_per_shard": 4})
    paths = sorted(outcome.folder.glob("samples-*.parquet"))
    assert [path.name for path in paths] == [f"samples-0000{i}.parquet" for i in range(3)]
    assert [pq.read_metadata(path).num_rows for path in paths] == [4, 4, 2]
    assert outcome.samples["source_row"].to_pylist() == [1, 3, 5, *range(7, 14)]


def test_batches_and_files_do_not_shape_the_shards(ingest, write, monkeypatch) -> None:
    """The same samples give the same shards however they were batched on the way."""
    uri = write("t.csv", make_csv(*((f"text {i}", i % 2) for i in range(25))))
    options = {"format": "jigsaw", "uri": uri, "ingestion": {"rows_per_shard": 7}}
    whole = ingest(**options)
    monkeypatch.setattr("eigenshift.datasets.spooling.MAX_BATCH_ROWS", 3)
    batched = ingest(**options)
    assert list_digests(whole) == list_digests(batched)


def test_two_ingests_give_the_same_bytes(ingest, write) -> None:
    """Every file written is byte for byte the same the second time."""
    uri = write("t.csv", make_csv(*((f"text {i % 20}", i % 3 == 0) for i in range(30))))
    options = {"format": "sentences", "uri": uri, "columns": {"text": "comment_text"}}
    assert list_digests(ingest(**options)) == list_digests(ingest(**options))


def list_digests(outcome) -> dict[str, str]:
    """Digest of each file of a workspace."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in outcome.folder.iterdir()
    }


def test_max_rows_reads_from_the_top_of_each_file(ingest, write, tmp_path) -> None:
    """Later rows are not read: not counted, and not able to fail."""
    write("a.csv", make_csv(("", 0), ("tea", 0), ("jam", 0)))
    write("b.csv", make_csv(("oil", 0), ("egg", 0), ("tea", 1)))
    outcome = ingest(format="jigsaw", uri=str(tmp_path / "*.csv"), max_rows=2)
    assert outcome.texts == ["tea", "oil", "egg"]
    assert [file["rows_read"] for file in outcome.files] == [2, 2]


def test_gzip_gives_the_same_samples(ingest, write) -> None:
    """A compressed file differs only in its name, size and digest."""
    content = make_csv(("tea, hot", 0), ("jam\nred", 1)).encode()
    plain = ingest(format="jigsaw", uri=write("t.csv", content))
    packed = ingest(format="jigsaw", uri=write("t.csv.gz", gzip.compress(content)))
    assert packed.samples.drop(["source_uri"]) == plain.samples.drop(["source_uri"])
    assert packed.files[0]["sha256"] != plain.files[0]["sha256"]


@pytest.mark.parametrize("cut", [slice(None, 60), slice(5, None), slice(0, 0)])
def test_damaged_gzip_stops_the_run(ingest, write, cut: slice) -> None:
    """A compressed file that ends early, or is none, is an error that names it."""
    content = gzip.compress(make_csv(*((f"text {i}", 0) for i in range(99))).encode())
    with pytest.raises(DatasetError, match=r"t\.csv\.gz: expected"):
        ingest(format="jigsaw", uri=write("t.csv.gz", content[cut]))


def test_urls_are_read_like_paths(ingest) -> None:
    """Any fsspec URL will do, with globs."""
    for name in ("one", "two"):
        with fsspec.open(f"memory://urls/{name}.csv", "wb") as handle:
            handle.write(make_csv((f"tea {name}", 0)).encode())
    outcome = ingest(format="jigsaw", uri="memory://urls/*.csv")
    assert outcome.texts == ["tea one", "tea two"]
    assert outcome.files[0]["source_uri"].startswith("memory://")


def test_source_files_hold_size_and_digest(ingest, write) -> None:
    """What was read can be told from any other version of the file."""
    content = make_csv(("tea", 0)).encode()
    uri = write("t.csv", content)
    assert ingest(format="jigsaw", uri=uri).files == [
        {
            "dataset": "demo",
            "source_uri": uri,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "rows_read": 1,
        }
    ]


def test_missing_file_stops_the_run(ingest, tmp_path) -> None:
    """A path that matches nothing is an error, not an empty source."""
    with pytest.raises(DatasetError, match="expected at least one file, found none"):
        ingest(format="jigsaw", uri=str(tmp_path / "none-*.csv"))


def test_digest_follows_every_file(write, tmp_path) -> None:
    """A changed, added or renamed file, or other labels, give another digest; nothing else does."""
    digests = []

    def record(**source) -> None:
        settings = SourceSettings(name="demo", format="jigsaw", **source)
        assert digest_source(settings) == digest_source(settings)
        digests.append(digest_source(settings))

    uri = str(tmp_path / "t-*.csv")
    write("t-1.csv", make_csv(("tea", 0)))
    record(uri=uri)
    write("t-1.csv", make_csv(("tea", 1)))
    record(uri=uri)
    write("t-2.csv", make_csv(("jam", 0)))
    record(uri=uri)
    record(uri=uri, labels_uri=write("labels.csv", "id,toxic\n1,0\n"))
    record(uri=uri, labels_uri=write("labels.csv", "id,toxic\n1,1\n"))
    assert len(set(digests)) == 5
    assert INGEST_SOURCE.version >= 1


def test_own_bookkeeping_is_checked(write, ingest, monkeypatch) -> None:
    """A reader that skips a record is caught."""
    items = [Sample(1, "tea", False), Sample(3, "jam", False)]
    monkeypatch.setitem(
        reading.MAKE_READER,
        reading.SourceFormat.jigsaw,
        lambda source: lambda uri: iter(items),
    )
    with pytest.raises(DatasetError, match="expected record 2, found record 3"):
        ingest(format="jigsaw", uri=write("t.csv", HEADER))


def test_records_never_show_their_text() -> None:
    """A rejection can be printed; what could hold text is not in it."""
    assert set(Rejection.__slots__) == {"source_row", "reason", "detail"}


PROBE = "umbrella"


@pytest.mark.parametrize(
    "content",
    [
        HEADER + f"{PROBE},0,{PROBE}\n",
        HEADER + f"{PROBE},{PROBE}\n",
        f"{PROBE},0\n{PROBE},1\n",
        HEADER + f'"{PROBE},0\n',
        HEADER.encode() + PROBE.encode() + b"\xff,0\n",
        HEADER + f"{PROBE},0\n{PROBE},1\n",
    ],
    ids=["cells", "label", "headerless", "quote", "encoding", "contradictory"],
)
def test_errors_and_logs_never_repeat_a_text(ingest, write, caplog, content) -> None:
    """Neither message, nor its causes, nor the log hold anything from a cell."""
    with caplog.at_level(logging.DEBUG), pytest.raises(DatasetError) as caught:
        ingest(format="jigsaw", uri=write("t.csv", content))
    error: BaseException | None = caught.value
    while error is not None:
        assert PROBE not in repr(error)
        error = error.__cause__
    assert PROBE not in caplog.text


CELLS = st.one_of(
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=4),
    st.sampled_from([b"", b'"', b'""', b'"a\nb"', b"tea", b"TEA ", b"\xe8\x8c\xb6", b"\0"]),
)
LABELS = st.sampled_from([b"0", b"1", b"-1", b"", b"0.5", b"x", b'"1"', b"0,0", b"0\n"])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, LABELS), max_size=12), end=st.sampled_from([b"\n", b"\r\n"]))
def test_rows_read_are_samples_and_rejected_rows(ingest, rows, end) -> None:
    """For any bytes in a CSV, each record is a sample or a rejected row (checked by `ingest`)."""
    uri = f"memory://property/{next(FILE_NUMBERS)}.csv"
    lines = [b"comment_text,toxic", b"a plain row,0", *(b",".join(row) for row in rows)]
    with fsspec.open(uri, "wb") as handle:
        handle.write(end.join(lines))
    outcome = ingest(format="jigsaw", uri=uri, ingestion={"rows_per_shard": 3, **ANY_ROWS})
    assert outcome.facts["rows_read"] >= 1
