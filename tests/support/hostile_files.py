"""Files as users have them: compressed, misnamed, cut short, nested, of other programs.

Everything in them is made up and neutral.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COMMENTS = b"id,comment_text,toxic\n0001,tea,0\n0002,jam,1\n0003,oil,0\n"
PROMPTS: list[dict[str, Any]] = [
    {
        "prompt": {"text": f"The lamp {number} was", "toxicity": score, "threat": 0.5},
        "begin": number,
    }
    for number, score in enumerate((0.1, 0.9, None))
]
CLASSES = "tweet,class\n" + "".join(f"plain words {n},{n % 3}\n" for n in range(30))
"""As in hate-speech-and-offensive-language: 0 hate, 1 offensive, 2 neither."""


def pack_zip(members: Mapping[str, bytes]) -> bytes:
    """A zip file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def lock_zip(content: bytes) -> bytes:
    """The same, marked as encrypted in its two headers."""
    locked = bytearray(content)
    locked[6] |= 1
    locked[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(locked)


def break_zip(content: bytes) -> bytes:
    """One whose bytes are not those its checksum is of."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("train.csv", content)
    return out.getvalue().replace(b"jam", b"ham", 1)


def pack_tar(members: Mapping[str, bytes]) -> bytes:
    """A tar file, compressed by gzip."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def pack_zstd(content: bytes) -> bytes:
    """A file compressed by zstd."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return bytes(sink.getvalue().to_pybytes())


def make_parquet(table: pa.Table) -> bytes:
    """A Parquet file."""
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def make_arrow_stream(table: pa.Table) -> bytes:
    """An Arrow stream, as the hub's library keeps its data."""
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def make_twins(names: list[str]) -> pa.Table:
    """A table whose columns may have one name."""
    return pa.Table.from_arrays(
        [pa.array([f"{n} of {name}"]) for n, name in enumerate(names)], names
    )


def number_classes(names: list[str]) -> pa.Table:
    """Two texts, of the classes 0 and 1, which are named as the hub's library names them."""
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    document = json.dumps({"info": {"features": features}})
    table = pa.table({"text": ["tea", "jam"], "label": [0, 1]})
    return table.replace_schema_metadata({"huggingface": document})


def make_workbook() -> bytes:
    """What a workbook of Excel looks like from outside."""
    return pack_zip({"[Content_Types].xml": b"<Types/>", "xl/workbook.xml": b"<workbook/>"})


def save_to_disk(folder: Path) -> None:
    """A folder as the hub's library writes it."""
    folder.mkdir()
    (folder / "data-00000-of-00001.arrow").write_bytes(
        make_arrow_stream(pa.table({"text": ["tea"]}))
    )
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text('{"description": ""}')


def make_folder(folder: Path) -> None:
    """A folder of data, with what else lies in such folders."""
    folder.joinpath("more").mkdir(parents=True)
    (folder / "README.md").write_text("# Comments\n")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / "a.csv").write_bytes(COMMENTS)
    (folder / "more" / "b.csv.gz").write_bytes(gzip.compress(COMMENTS.replace(b"tea", b"ink")))
