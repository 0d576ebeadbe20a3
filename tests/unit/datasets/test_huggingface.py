"""Hugging Face datasets: local folders and files, and ids with a hub that is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base.errors import DatasetError
from eigenshift.datasets import huggingface
from eigenshift.datasets.reading import digest_source
from eigenshift.settings import SourceSettings

TABLE = pa.table(
    {
        "sentence": ["Green tea", "Red jam", None, "green TEA", "Blue sky"],
        "label": [0, 1, 0, 0, -1],
        "lang": ["en", "nl", "en", "en", "en"],
        "scores": [[0.5], [], None, None, None],
    }
)
COLUMNS = {"text": "sentence", "label": "label", "language": "lang"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset folder with a Parquet file per split."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    pq.write_table(TABLE, folder / "train-00000.parquet")
    pq.write_table(TABLE.slice(0, 1), folder / "test-00000.parquet")
    return folder


def check_table(outcome) -> None:
    """The samples and rejected rows of TABLE."""
    assert outcome.texts == ["Green tea", "Red jam"]
    assert outcome.samples["is_toxic"].to_pylist() == [False, True]
    assert outcome.samples["language"].to_pylist() == ["en", "nl"]
    assert outcome.attributes() == {"label": 0, "lang": "en", "scores": [0.5]}
    assert outcome.reasons == [(3, "missing_field"), (4, "duplicate_text"), (5, "unscored")]


def test_folder_of_parquet(ingest, folder) -> None:
    """A local dataset folder is read split by split."""
    outcome = ingest(format="huggingface", uri=str(folder), columns=COLUMNS)
    check_table(outcome)
    assert outcome.files[0]["source_uri"] == f"{folder}#train"
    test = ingest(format="huggingface", uri=str(folder), columns=COLUMNS, split="test")
    assert (test.facts["rows_read"], test.rows[0]["split"]) == (1, "test")


def test_json_file_and_url(ingest, tmp_path) -> None:
    """A JSON Lines file is read through the library's builder, from a path or a URL."""
    import fsspec

    lines = "".join(json.dumps(row) + "\n" for row in TABLE.to_pylist())
    (tmp_path / "rows.jsonl").write_text(lines)
    uri = str(tmp_path / "rows.jsonl")
    check_table(ingest(format="huggingface", uri=uri, columns=COLUMNS, split="validation"))
    with fsspec.open("memory://hub/rows.jsonl", "w") as handle:
        handle.write(lines)
    check_table(ingest(format="huggingface", uri="memory://hub/rows.jsonl", columns=COLUMNS))


def test_folder_saved_to_disk(ingest, tmp_path) -> None:
    """What save_to_disk wrote is read back, whole or by split."""
    dataset = datasets.Dataset(TABLE)
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "splits"))
    dataset.save_to_disk(str(tmp_path / "single"))
    for name in ("splits", "single"):
        check_table(ingest(format="huggingface", uri=str(tmp_path / name), columns=COLUMNS))


def test_max_rows(ingest, folder) -> None:
    """Only the first rows are read."""
    outcome = ingest(format="huggingface", uri=str(folder), columns=COLUMNS, max_rows=2)
    assert outcome.facts["rows_read"] == 2


def test_changed_file_is_read_again(ingest, tmp_path) -> None:
    """No cache serves the older content of a file with the same name and size."""
    for text in ("tea", "jam"):
        (tmp_path / "t.csv").write_text(f"text,y\n{text},0\n")
        uri = str(tmp_path / "t.csv")
        assert ingest(format="huggingface", uri=uri, columns={"label": "y"}).texts == [text]


def test_missing_split_names_those_there_are(ingest, folder) -> None:
    """A split that does not exist is an error in the settings' words."""
    with pytest.raises(DatasetError, match=r"split dev.*train"):
        ingest(format="huggingface", uri=str(folder), columns=COLUMNS, split="dev")


def test_missing_column_is_named(ingest, folder) -> None:
    """A mapping to a column that is not there stops before any row is read."""
    with pytest.raises(DatasetError, match="expected the columns body, label, found sentence"):
        ingest(format="huggingface", uri=str(folder), columns={"text": "body", "label": "label"})


def test_missing_folder_is_not_taken_for_an_id(ingest, tmp_path) -> None:
    """A path that does not exist never reaches the hub."""
    with pytest.raises(DatasetError, match="found none"):
        ingest(format="huggingface", uri=str(tmp_path / "gone"), columns=COLUMNS)


def test_dataset_scripts_are_not_run(ingest, tmp_path) -> None:
    """A folder whose data comes from a script is refused, and the script is not executed."""
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('executed')\n")
    with pytest.raises(DatasetError, match="expected"):
        ingest(format="huggingface", uri=str(folder), columns=COLUMNS)
    assert "scripted" not in sys.modules


def test_unreadable_files_do_not_leak_their_text(ingest, tmp_path, capfd) -> None:
    """What the library's parser stumbled over appears neither in the error nor on stderr."""
    (tmp_path / "t.json").write_text('{"text": "umbrella", "y": 0}\n{"text": umbrella}\n')
    with pytest.raises(DatasetError) as caught:
        ingest(format="huggingface", uri=str(tmp_path / "t.json"), columns={"label": "y"})
    assert "umbrella" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "umbrella" not in capfd.readouterr().err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A hub with one dataset; set `answers` to False to cut the line."""
    state: dict[str, object] = {"answers": True, "sha": COMMIT, "calls": []}

    def answer(self, repo_id, **options):
        if not state["answers"]:
            raise huggingface.HTTP_ERROR("no route")
        return SimpleNamespace(sha=state["sha"])

    def load(path, **options):
        state["calls"].append((path, options))
        return datasets.Dataset(TABLE)

    monkeypatch.setattr(huggingface.HfApi, "dataset_info", answer)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return state


def test_hub_dataset_is_read_at_the_commit_resolved(ingest, hub) -> None:
    """A branch is resolved once, and the data is loaded at that commit."""
    outcome = ingest(
        format="huggingface", uri="org/set", columns=COLUMNS, revision="main", configuration="plain"
    )
    check_table(outcome)
    assert outcome.files[0]["source_uri"] == f"hf://datasets/org/set@{COMMIT}/plain/train"
    options = {"name": "plain", "revision": COMMIT, "split": "train"}
    assert hub["calls"] == [("org/set", options)]


def test_digest_follows_the_hub(hub) -> None:
    """Another commit gives another digest; a pinned commit needs no hub."""

    def digest(**more) -> str:
        source = {"name": "demo", "format": "huggingface", "uri": "org/set", "columns": COLUMNS}
        return digest_source(SourceSettings(**{**source, **more}))

    first = digest()
    assert digest() == first
    hub["sha"] = "f" * 40
    digests = {first, digest(), digest(configuration="plain"), digest(split="test")}
    pinned = digest(revision=COMMIT)
    hub["answers"] = False
    assert digest(revision=COMMIT) == pinned
    digests |= {pinned, digest()}
    assert len(digests) == 6


def test_hub_that_does_not_answer_is_an_error(ingest, monkeypatch) -> None:
    """Without a network the error names the dataset and the settings to check."""

    def refuse(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(huggingface.HfApi, "dataset_info", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DatasetError, match=r"org/set \(split train\).*`revision`"):
        ingest(format="huggingface", uri="org/set", columns=COLUMNS)


@pytest.mark.parametrize("place", ["file", "folder", "hub"])
def test_texts_of_csv_stay_texts(ingest, tmp_path, monkeypatch, place) -> None:
    """Pandas, by which the library reads CSV, takes these for nothing, and 0001 for 1."""
    texts = ["None", "NA", "null", "nan", "tea"]
    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / "train.csv"
    rows = "".join(f"000{n},{text},{n % 2}\n" for n, text in enumerate(texts))
    path.write_text(f"id,text,y\n{rows}")
    uri = {"file": str(path), "folder": str(folder), "hub": "org/set"}[place]
    if place == "hub":
        _answer_as_hub(monkeypatch, datasets.load_dataset_builder(str(folder)))
    outcome = ingest(format="huggingface", uri=uri, columns={"label": "y", "id": "id"})
    assert outcome.texts == texts
    assert outcome.attributes(4) == {"id": "0004", "y": 0}


def _answer_as_hub(monkeypatch, builder) -> None:
    """The library as it answers for an id whose files are CSV."""
    dataset = datasets.Dataset.from_dict({"id": [1], "text": [None], "y": [0]})
    dataset.info.builder_name = "csv"
    info = SimpleNamespace(sha=COMMIT)
    monkeypatch.setattr(huggingface.HfApi, "dataset_info", lambda *_, **__: info)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)


def test_texts_of_json_stay_texts(ingest, tmp_path) -> None:
    """Pyarrow, by which the library reads JSON, makes dates of these."""
    folder = tmp_path / "set"
    folder.mkdir()
    texts = ["2020-01-01", "2020-01-02"]
    lines = "".join(json.dumps({"text": text, "y": 0}) + "\n" for text in texts)
    (folder / "train.jsonl").write_text(lines)
    for uri in (folder, folder / "train.jsonl"):
        outcome = ingest(format="huggingface", uri=str(uri), columns={"label": "y"})
        assert outcome.texts == texts


def test_numbered_classes_are_read_by_their_names(ingest, tmp_path) -> None:
    """0 may be the toxic one; names that say nothing stop the run."""
    for number, names in enumerate((["toxic", "clean"], ["negative", "positive"])):
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        )
        table = {"text": ["tea", "jam"], "label": [0, 1]}
        folder = tmp_path / str(number)
        datasets.Dataset.from_dict(table, features=features).save_to_disk(str(folder))
    options = {"format": "huggingface", "columns": {"label": "label"}}
    outcome = ingest(uri=str(tmp_path / "0"), **options)
    assert outcome.samples["is_toxic"].to_pylist() == [True, False]
    with pytest.raises(DatasetError, match="expected labels, found 2 of 2 rows"):
        ingest(uri=str(tmp_path / "1"), **options)


def test_files_of_one_source_are_numbered_on(ingest, tmp_path) -> None:
    """Rows of several files are one split's, whatever each file is."""
    (tmp_path / "a.csv").write_text("text\ntea\n")
    (tmp_path / "b.jsonl").write_text('{"text": "jam"}\n{"text": "oil"}\n')
    outcome = ingest(format="huggingface", role="neutral", uri=str(tmp_path / "*"))
    assert outcome.samples["source_row"].to_pylist() == [1, 2, 3]


def test_a_part_of_a_split_of_csv_is_refused(ingest, tmp_path) -> None:
    """The library could cut it, but would lose texts; `max_rows` does the same."""
    (tmp_path / "train.csv").write_text("text\ntea\nNone\n")
    options = {"format": "huggingface", "role": "neutral", "uri": str(tmp_path)}
    with pytest.raises(DatasetError, match="`max_rows`"):
        ingest(split="train[:1]", **options)
    assert ingest(max_rows=1, **options).texts == ["tea"]
