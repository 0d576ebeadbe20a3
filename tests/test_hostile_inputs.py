"""Hostile and awkward inputs, one table: each is read right, or refused so that one can act on it.

Refused means: exit code 2, one message with the place, what was expected, what was found and the
way out, no text of the input in it, and nothing left behind. Files come to the product as in a run,
through the stage `read_file` and a store.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.audit import open_audit
from eigenshift.datasets.reading import list_sources
from eigenshift.datasets.stages import READ_FILE, ReadingInputs, ReadingKey, SourceContent
from eigenshift.ledger.runs import start_run, write_run
from eigenshift.model.loading import load_model
from eigenshift.settings import (
    ExecutionSettings,
    ModelSettings,
    SourceSettings,
    load_settings,
)
from eigenshift.stages import tables
from eigenshift.stages.running import run_stage
from eigenshift.stages.stage import Place
from eigenshift.store.storage import Store
from flows import command_line
from tests.support import hostile_files as files
from tests.support.small_store import make_settings

PROBE = "umbrella"
"""Stands for offensive text: no message may repeat it."""
DEMO_MODEL = Path(__file__).parents[1] / "data" / "demo" / "model"
JIGSAW = {"format": "jigsaw"}
SENTENCES = {"format": "sentences"}
LABELLED = {"format": "sentences", "role": "labelled", "columns": {"label": "y"}}
CLASSES = {"format": "sentences", "role": "labelled"}
HUB = {"format": "huggingface", "role": "labelled", "columns": {"label": "y", "id": "id"}}
RTP = {"format": "real_toxicity_prompts"}


@dataclass(frozen=True)
class File:
    """A file of a source.

    Attributes:
        name: Of the case.
        called: Of the file; a folder is made by `content`.
        content: Its bytes, or what makes a folder.
        source: Settings beside its place.
        says: Words of the message; None: it is read.
        labels: `is_toxic` of the texts that are read.
        texts: Those texts, where they matter.
        rejected: Reasons of its rejected rows.
    """

    name: str
    called: str
    content: bytes | str | Callable[[Path], None]
    source: dict[str, Any]
    says: tuple[str, ...] | None = None
    labels: list[bool | None] = field(default_factory=list)
    texts: list[str] | None = None
    rejected: tuple[str, ...] = ()


def comments(*rows: str) -> str:
    """A CSV of comments and labels."""
    return "comment_text,toxic\n" + "".join(f"{row}\n" for row in rows)


def labels(*cells: str) -> str:
    """A CSV of texts and labels of any kind."""
    return "text,y\n" + "".join(f'text {n},"{cell}"\n' for n, cell in enumerate(cells))


YES_NO = [False, True, False]
FIRST = '{"text": "tea"}\n'

ROWS = [
    File(
        "NUL in a text",
        "t.csv",
        comments("a\0b,0", "tea,1"),
        JIGSAW,
        labels=[True],
        rejected=("bad_encoding",),
    ),
    File(
        "broken UTF-8",
        "t.csv",
        comments("tea,1").encode() + b"\xff\xfe,0\n",
        JIGSAW,
        labels=[True],
        rejected=("bad_encoding",),
    ),
    File(
        "a quote left open",
        "t.csv",
        comments("tea,1", '"jam,0'),
        JIGSAW,
        labels=[True],
        rejected=("unclosed_quote",),
    ),
    File(
        "too many cells",
        "t.csv",
        comments("tea,1", "jam,0,0"),
        JIGSAW,
        labels=[True],
        rejected=("wrong_column_count",),
    ),
    File(
        "half a surrogate pair",
        "t.jsonl",
        FIRST + '{"text": "\\ud800"}\n',
        SENTENCES,
        labels=[None],
        rejected=("bad_encoding",),
    ),
    File(
        "a member twice",
        "t.jsonl",
        FIRST + '{"text": "a", "text": "b"}\n',
        SENTENCES,
        labels=[None],
        rejected=("bad_json",),
    ),
    File(
        "deep nesting",
        "t.jsonl",
        FIRST + "[" * 100_000 + "\n",
        SENTENCES,
        labels=[None],
        rejected=("bad_json",),
    ),
    File(
        "a number of 5,000 digits",
        "t.jsonl",
        FIRST + '{"n": ' + "9" * 5_000 + "}\n",
        SENTENCES,
        labels=[None],
        rejected=("bad_json",),
    ),
    File(
        "nothing to see",
        "t.csv",
        comments("\u200b\ufeff,0", "tea,1"),
        JIGSAW,
        labels=[True],
        rejected=("empty_text",),
    ),
    File(
        "a text of a million characters",
        "t.csv",
        comments("x" * 1_000_000 + ",0", "tea,1"),
        JIGSAW,
        labels=[True],
        rejected=("text_too_long",),
    ),
    File(
        "NaN for a label",
        "t.jsonl",
        '{"text": "a", "y": NaN}\n{"text": "b", "y": 1}\n',
        LABELLED,
        labels=[True],
        rejected=("label_missing",),
    ),
    File(
        "texts that pandas takes for nothing",
        "t.csv",
        'id,text,y\n0001,None,0\n0002,NA,1\n0003,"nan",0\n',
        HUB,
        labels=YES_NO,
        texts=["None", "NA", "nan"],
    ),
    File(
        "texts that pyarrow takes for dates",
        "t.jsonl",
        '{"text": "2020-01-01", "y": 0}\n{"text": "2020-01-02", "y": 1}\n',
        HUB | {"columns": {"label": "y"}},
        labels=[False, True],
        texts=["2020-01-01", "2020-01-02"],
    ),
    File(
        "one label out of range",
        "t.csv",
        comments("tea,0", "jam,1", "oil,2"),
        JIGSAW,
        labels=[False, True],
        rejected=("label_out_of_range",),
    ),
    File(
        "three classes",
        "t.csv",
        files.CLASSES,
        CLASSES | {"columns": {"text": "tweet", "label": "class"}},
        says=("10 of 30 rows", "0 (10), 1 (10), 2 (10)", "columns.toxic_labels"),
    ),
    File(
        "three classes in a published schema",
        "t.csv",
        files.CLASSES.replace("tweet,class", "comment_text,toxic"),
        JIGSAW,
        says=("10 of 30 rows", "`format` to 'sentences'"),
    ),
    File(
        "three classes, named",
        "t.csv",
        "tweet,class\ntea,0\njam,1\noil,2\n",
        CLASSES
        | {
            "columns": {
                "text": "tweet",
                "label": "class",
                "toxic_labels": [0, 1],
                "nontoxic_labels": [2],
            }
        },
        labels=[True, True, False],
    ),
    File(
        "only -1 and 1",
        "t.csv",
        labels("1", "-1", "1"),
        LABELLED,
        says=("of both kinds", "nontoxic_labels: ['-1']"),
    ),
    File(
        "scores up to 100",
        "t.csv",
        labels("0", "88", "3", "41"),
        LABELLED,
        says=("3 of 4 rows", "columns.label_scale"),
    ),
    File(
        "scores up to 100, said so",
        "t.csv",
        labels("0", "88", "1"),
        LABELLED | {"columns": {"label": "y", "label_scale": 100}},
        labels=[False, True, False],
    ),
    File(
        "decimal commas and percentages",
        "t.csv",
        labels("0,25", "0,75", "12,5 %", "1,0", "88%"),
        LABELLED,
        labels=[False, True, False, True, True],
    ),
    File(
        "labels in words",
        "t.csv",
        labels("Not Toxic", "Toxic", "neutral", "hate", "non-hateful", "offensive"),
        LABELLED,
        labels=[False, True] * 3,
    ),
    File(
        "words that are no labels",
        "t.csv",
        labels("0", "spam", PROBE),
        LABELLED,
        says=("2 of 3 rows", "spam (1)", "text of 8 characters (1)", "toxic and not toxic"),
    ),
    File(
        "mostly rejected",
        "t.csv",
        comments("tea,0", "jam,", "oil,", "ink,"),
        JIGSAW,
        says=(
            "at most 50%",
            "3 rejected among 4",
            "label_missing: 3",
            "ingestion.max_rejected_share",
        ),
    ),
    File(
        "classes numbered the other way",
        "t.parquet",
        files.make_parquet(files.number_classes(["hate", "normal"])),
        LABELLED | {"columns": {"label": "label"}},
        labels=[True, False],
    ),
    File(
        "a column name with a dot",
        "t.csv",
        "body.text,y\ntea,0\njam,1\n",
        LABELLED | {"columns": {"text": "body.text", "label": "y"}},
        labels=[False, True],
    ),
]
CONTAINERS = [
    File(
        "a zip file called .csv",
        "train.csv",
        files.pack_zip({"train.csv": files.COMMENTS}),
        JIGSAW,
        labels=YES_NO,
    ),
    File(
        "a zip file of a Mac",
        "t.csv.zip",
        files.pack_zip({"__MACOSX/._t.csv": b"\0\5", ".DS_Store": b"\0", "t.csv": files.COMMENTS}),
        JIGSAW,
        labels=YES_NO,
    ),
    File(
        "a zip file of lines",
        "t.zip",
        files.pack_zip({"wiki.tokens": b"one\n\ntwo\n"}),
        SENTENCES,
        labels=[None, None],
        rejected=("empty_text",),
    ),
    File(
        "a zip file of two",
        "t.zip",
        files.pack_zip({"train.csv": files.COMMENTS, "test.csv": files.COMMENTS}),
        JIGSAW,
        says=("one file in it", "2: train.csv, test.csv", "Unpack it"),
    ),
    File(
        "a zip file of nothing",
        "t.zip",
        files.pack_zip({}),
        JIGSAW,
        says=("one file in it", "found none"),
    ),
    File(
        "a zip file with a password",
        "t.zip",
        files.lock_zip(files.pack_zip({"t.csv": files.COMMENTS})),
        JIGSAW,
        says=("without a password",),
    ),
    File(
        "a zip file cut short",
        "t.zip",
        files.pack_zip({"t.csv": files.COMMENTS})[:-30],
        JIGSAW,
        says=("cannot be read", "Fetch it again"),
    ),
    File(
        "a zip file with a wrong checksum",
        "t.zip",
        files.break_zip(files.COMMENTS),
        JIGSAW,
        says=("a readable file", "BadZipFile", "Fetch it again"),
    ),
    File("gzip called .csv", "t.csv", gzip.compress(files.COMMENTS), JIGSAW, labels=YES_NO),
    File("text called .csv.gz", "t.csv.gz", files.COMMENTS, JIGSAW, labels=YES_NO),
    File(
        "gzip cut short",
        "t.csv.gz",
        gzip.compress(files.COMMENTS)[:40],
        JIGSAW,
        says=("a readable file", "EOFError"),
    ),
    File(
        "gzip without its beginning",
        "t.csv.gz",
        gzip.compress(files.COMMENTS * 9)[5:],
        JIGSAW,
        says=("a gzip file, as its name says", "Fetch it again"),
    ),
    File("zstd called .csv", "t.csv", files.pack_zstd(files.COMMENTS), JIGSAW, labels=YES_NO),
    File(
        "a workbook called .csv",
        "t.csv",
        files.make_workbook(),
        JIGSAW,
        says=("a workbook of Excel", "Save the sheet as CSV"),
    ),
    File(
        "a tar archive",
        "t.tar.gz",
        files.pack_tar({"t.csv": files.COMMENTS}),
        JIGSAW,
        says=("a tar archive", "Unpack it"),
    ),
    File(
        "a 7-Zip archive",
        "t.csv",
        b"7z\xbc\xaf\x27\x1c" + bytes(20),
        JIGSAW,
        says=("a 7-Zip archive", "Unpack it"),
    ),
    File(
        "a pickle",
        "t.csv",
        b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x03tea\x94.",
        JIGSAW,
        says=("a Python pickle", "Write it as CSV"),
    ),
    File(
        "a pointer of Git LFS",
        "t.parquet",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        SENTENCES,
        says=("Git LFS", "Run git lfs pull"),
    ),
    File(
        "a page that asks for a login",
        "t.csv",
        "\n<!DOCTYPE html>\n<html><body>umbrella</body></html>\n",
        JIGSAW,
        says=("a web page", "Fetch the file itself"),
    ),
    File(
        "UTF-16",
        "t.csv",
        files.COMMENTS.decode().encode("utf-16"),
        JIGSAW,
        says=("UTF-16", "iconv"),
    ),
    File(
        "UTF-16 without its mark",
        "t.csv",
        files.COMMENTS.decode().encode("utf-16-le"),
        JIGSAW,
        says=("UTF-16", "iconv"),
    ),
    File(
        "Latin-1",
        "t.csv",
        comments(*(f"caf\xe9 {n},0" for n in range(4)), "tea,1").encode("latin-1"),
        JIGSAW,
        says=("bad_encoding: 4", "iconv -f WINDOWS-1252"),
    ),
    File(
        "semicolons",
        "t.csv",
        "id;comment_text;toxic\n1;tea, hot;0\n2;jam;1\n",
        JIGSAW,
        labels=[False, True],
        texts=["tea, hot", "jam"],
    ),
    File(
        "Excel's own line",
        "t.csv",
        b"\xef\xbb\xbfsep=;\r\ncomment_text;toxic\r\ntea;0\r\njam;1\r\n",
        JIGSAW,
        labels=[False, True],
    ),
    File(
        "tabs called .csv",
        "t.csv",
        "content\ttoxic\ntea\t0\njam\t1\n",
        {"format": "toxicn"},
        labels=[False, True],
    ),
    File(
        "a column twice in CSV",
        "t.csv",
        f"text,text\n{PROBE},jam\n",
        SENTENCES,
        says=("one column text", "found 2", "Rename or remove"),
    ),
    File(
        "a column twice in Parquet",
        "t.parquet",
        files.make_parquet(files.make_twins(["text", "text"])),
        SENTENCES,
        says=("one column text", "found 2", "Rename or remove"),
    ),
    File(
        "another column twice",
        "t.parquet",
        files.make_parquet(files.make_twins(["text", "x", "x"])),
        SENTENCES,
        labels=[None],
    ),
    File(
        "Parquet called .csv",
        "t.csv",
        files.make_parquet(pa.table({"content": ["tea", "jam"], "toxic": [0, 1]})),
        {"format": "toxicn"},
        labels=[False, True],
    ),
    File(
        "Parquet in gzip",
        "t.gz",
        gzip.compress(files.make_parquet(pa.table({"text": ["tea"]}))),
        SENTENCES,
        labels=[None],
    ),
    File(
        "Parquet cut short",
        "t.parquet",
        files.make_parquet(pa.table({"text": ["tea"]}))[:-20],
        SENTENCES,
        says=("a Parquet file", "damaged or cut short"),
    ),
    File(
        "an Arrow stream",
        "t.arrow",
        files.make_arrow_stream(pa.table({"text": ["tea"]})),
        SENTENCES,
        labels=[None],
    ),
    File(
        "prompts as Parquet",
        "t.parquet",
        files.make_parquet(pa.Table.from_pylist(files.PROMPTS)),
        RTP,
        labels=[False, True, None],
    ),
    File(
        "prompts as an array",
        "t.json",
        json.dumps(files.PROMPTS, indent=1),
        RTP,
        labels=[False, True, None],
    ),
    File(
        "prompts as a flat table",
        "t.csv",
        "prompt.text;prompt.toxicity\ntea;0,2\njam;0,9\noil;\n",
        RTP,
        labels=[False, True, None],
    ),
    File(
        "prompts by their columns",
        "t.parquet",
        files.make_parquet(pa.Table.from_pylist(files.PROMPTS)),
        {
            "format": "huggingface",
            "role": "prompts",
            "columns": {"text": "prompt.text", "label": "prompt.toxicity"},
        },
        labels=[False, True, None],
    ),
    File(
        "ToxiCN as JSON",
        "t.json",
        json.dumps(
            [
                {"content": "tea", "toxic": 0, "toxic_one_hot": [1, 0]},
                {"content": "jam", "toxic": 1},
            ]
        ),
        {"format": "toxicn"},
        labels=[False, True],
    ),
    File(
        "an array cut short",
        "t.json",
        json.dumps(files.PROMPTS)[:-9],
        RTP,
        says=("a JSON array", "an error at character", "cut short"),
    ),
    File(
        "JSON by columns",
        "t.json",
        '{"comment_text": {"0": "umbrella"}, "toxic": {"0": 1}}',
        JIGSAW,
        says=("one object of columns", "orient='records'"),
    ),
    File(
        "JSON as one object",
        "t.json",
        '{\n "a": {"text": "umbrella"},\n "b": {}\n}\n',
        SENTENCES,
        says=("one object with 2 members", "orient='records'"),
    ),
    File("an empty file", "t.csv", b"", JIGSAW, says=("an empty file", "Fetch the file again")),
    File("a header alone", "t.csv", comments(), JIGSAW, says=("no rows at all", "Check")),
    File(
        "no header",
        "t.csv",
        f"{PROBE},0\n{PROBE} two,1\n",
        JIGSAW,
        says=("comment_text, toxic", "not shown", "header"),
    ),
    File(
        "an ending that says nothing",
        "t.docx",
        PROBE,
        SENTENCES,
        says=("ending in", ".docx", "Rename"),
    ),
    File("a folder", "data", files.make_folder, JIGSAW, labels=YES_NO),
    File(
        "a folder of save_to_disk",
        "data",
        files.save_to_disk,
        SENTENCES,
        says=("save_to_disk", "'huggingface'"),
    ),
    File(
        "an empty folder",
        "data",
        Path.mkdir,
        JIGSAW,
        says=("at least one file", "found none", "Check the path"),
    ),
    File("a glob's letters in a name", "a[1] b.csv", files.COMMENTS, JIGSAW, labels=YES_NO),
    File("a name in Chinese", "茶.csv", files.COMMENTS, JIGSAW, labels=YES_NO),
]


def write(case: File, folder: Path) -> SourceSettings:
    """Lay the file down, and name it in the settings of a source."""
    path = folder / case.called
    if callable(case.content):
        case.content(path)
    else:
        path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    return SourceSettings(name="demo", uri=str(path), **case.source)


def read(source: SourceSettings, place: Place) -> tuple[list[Any], list[str], list[str]]:
    """The first file of a source as a run reads it: labels, texts, and reasons of rejected rows."""
    file = list_sources(source)[0]
    inputs = ReadingInputs(content=SourceContent(source=file))
    key = ReadingKey(source=file, max_characters=20_000)
    artifact = place.open().artifacts.open(run_stage(READ_FILE, inputs, key, place).reference)
    records = pq.read_table(artifact.fetch(tables.RECORDS.file))
    rejected = pq.read_table(artifact.fetch(tables.REJECTED_ROWS.file))
    columns = (records["is_toxic"], records["text"], rejected["reason"])
    labels, texts, reasons = (column.to_pylist() for column in columns)
    return labels, texts, reasons


def list_objects(folder: Path) -> list[str]:
    """Everything below a folder, but for empty folders."""
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def refuse(work: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Do what must be refused, as the command line does; its message.

    It says what was expected and found, in one message without a traceback or a text.
    """
    assert command_line._run(work) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert PROBE not in said
    return " ".join(said.split())


@pytest.mark.parametrize("case", [*ROWS, *CONTAINERS], ids=lambda case: case.name)
def test_files(case: File, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file gives the right texts and labels, or a message and an untouched store."""
    source = write(case, tmp_path)
    store = tmp_path / "store"
    place = Place(str(store), ModelSettings(id="none"), ExecutionSettings())
    if case.says is None:
        labels, texts, reasons = read(source, place)
        assert (labels, tuple(reasons)) == (case.labels, case.rejected)
        assert case.texts is None or texts == case.texts
        return
    said = refuse(lambda: read(source, place), capsys)
    for words in (case.called, "expected", "found", *case.says):
        assert words in said
    assert list_objects(store) == []


def configure(more: str = "", **columns: object) -> str:
    """Settings of one labelled source, with these columns, and more."""
    source = {"name": "demo", "format": "sentences", "role": "labelled", "uri": "t.csv"}
    sources = json.dumps([{**source, "columns": columns}])
    return f"model: {{id: x}}\nsources: {sources}\n{more}\n"


CONFIGS: dict[str, tuple[str | bytes | None, str]] = {
    "not there": (None, "expected a readable settings file"),
    "no mapping": ("- one\n- two\n", "mapping"),
    "no YAML": ("store: [1, 2\n", "expected"),
    "not UTF-8": (b"store: \xff\xfe\n", "expected"),
    "an unknown field": (configure("modell: {id: x}", label="y"), "modell"),
    "a text for a number": (
        configure("generation: {n_samples: many}", label="y"),
        "generation.n_samples",
    ),
    "a share above 1": (
        configure("ingestion: {max_rejected_share: 1.5}", label="y"),
        "ingestion.max_rejected_share",
    ),
    "half of the classes": (configure(label="y", toxic_labels=[0]), "nontoxic_labels"),
    "a class on both sides": (
        configure(label="y", toxic_labels=[0], nontoxic_labels=[0]),
        "leave it in one",
    ),
    "classes without a column": (
        configure(toxic_labels=[0], nontoxic_labels=[1]),
        "columns.label",
    ),
    "a scale of nothing": (configure(label="y", label_scale=0), "label_scale"),
    "labels without a column": (configure(), "columns.label"),
    "a password in a URL": (
        "sources: [{name: demo, format: jigsaw, uri: 'https://me:umbrella@host/t.csv'}]\n",
        "credentials",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_settings(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings that do not fit are named by their place in the file."""
    content, words = CONFIGS[name]
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = list_objects(tmp_path)
    said = refuse(lambda: load_settings(path), capsys)
    assert "mine.yaml" in said
    assert words in said
    assert list_objects(tmp_path) == before


def spoil(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Replace a file of a model, or take it away."""

    def change(folder: Path) -> None:
        path = folder / name
        path.unlink() if content is None else path.write_bytes(content)

    return change


def cut(folder: Path) -> None:
    """Leave the weights half written."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def pickle_weights(folder: Path) -> None:
    """Weights that only a pickle holds."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no config": (spoil("config.json", None), "config.json"),
    "a config that is no JSON": (spoil("config.json", b'{"model_type": '), "config.json"),
    "a config of no known model": (spoil("config.json", b'{"model_type": "umbrello"}'), "umbrello"),
    "weights cut short": (cut, "safetensors"),
    "weights that are a pointer": (
        spoil("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "git-lfs pointer",
    ),
    "pickled weights": (pickle_weights, "save_pretrained"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("token*")], "tokenizer"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that cannot be loaded is told before any work; its folder stays as it is."""
    change, words = CHECKPOINTS[name]
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    change(folder)
    before = list_objects(tmp_path)
    said = refuse(lambda: load_model(ModelSettings(id=str(folder)), "cpu"), capsys)
    assert str(folder) in said
    assert words in said
    assert list_objects(tmp_path) == before


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run."""
    folder = tmp_path_factory.mktemp("store")
    settings = make_settings(str(folder))
    write_run(Store(str(folder)), start_run("refresh", settings))
    return folder


QUESTIONS = {
    "a table removed": ("drop table runs", "found DROP"),
    "two at once": ("select 1; select 2", "expected one statement"),
    "a file written": ("copy (select 1) to '{folder}/out.csv'", "found COPY"),
    "a database attached": ("attach '{folder}/out.db'", "found ATTACH"),
    "a setting changed": ("set enable_external_access = true", "found SET"),
    "a row removed inside": (
        "with gone as (delete from runs returning *) select * from gone",
        "refused|only reads",
    ),
    "a file read": ("select * from read_text('/etc/hostname')", "refused|failed"),
    "a column that is not there": ("select umbrello from runs", "refused"),
    "no SQL": ("who is toxic?", "refused"),
    "nothing": ("", "expected one statement"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions(name: str, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an audit may not be asked is refused, and leaves no file."""
    sql, words = QUESTIONS[name]
    before = list_objects(asked)

    def ask() -> None:
        with open_audit(str(asked)) as session:
            session.query(sql.format(folder=asked))

    said = refuse(ask, capsys)
    assert any(word in said for word in words.split("|"))
    assert list_objects(asked) == before


PLACES = {
    "no such file": ("{folder}/none.csv", "at least one file"),
    "no match": ("{folder}/*.csv", "at least one file"),
    "a protocol that is none": ("nowhere://bucket/t.csv", "found nowhere://"),
    "a token in a URL": ("s3://bucket/t.csv?token=umbrella", "credentials"),
    "a file as a folder": ("{folder}/t.txt/t.csv", "at least one file"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place where nothing can be read is told with what to check."""
    uri, words = PLACES[name]
    (tmp_path / "t.txt").write_text("tea\n")
    store = tmp_path / "store"
    place = Place(str(store), ModelSettings(id="none"), ExecutionSettings())

    def attempt() -> None:
        path = tmp_path / "mine.yaml"
        where = json.dumps(uri.format(folder=tmp_path))
        path.write_text(
            f"model: {{id: x}}\nsources:\n- {{name: demo, format: jigsaw, uri: {where}}}\n"
            "- {name: rtp, format: real_toxicity_prompts, uri: p.jsonl}\n"
            "- {name: plain, format: paragraphs, uri: p.txt}\n"
        )
        read(load_settings(path).sources[0], place)

    said = refuse(attempt, capsys)
    assert words in said
    assert list_objects(store) == []


def test_there_are_sixty() -> None:
    """The table does not shrink."""
    tables_of_cases = (ROWS, CONTAINERS, CONFIGS, CHECKPOINTS, QUESTIONS, PLACES)
    assert sum(map(len, tables_of_cases)) >= 60
