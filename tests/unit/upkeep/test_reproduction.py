"""What a run was made of and found, as one JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eigenshift.base.errors import SettingsError
from eigenshift.settings import RefreshSettings, settle_settings
from eigenshift.upkeep.reproduction import (
    describe_run,
    read_reproduction,
    write_reproduction,
)
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read, but for its reproductions."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


def test_everything_the_run_read_is_named_by_digest(small: SmallStore) -> None:
    """Model, every source file, the scorer, code, libraries; and every number it found."""
    found = describe_run(small.artifacts, small.record)
    assert found.model.digest == "w" * 64
    assert {(item.dataset, item.file) for item in found.data} == {
        ("comments", "comments.csv"),
        ("prompts", "prompts.csv"),
        ("neutral", "neutral.csv"),
    }
    assert all(item.sha256 == "f" * 64 for item in found.data)
    rows = small.artifacts.open(small.references["evaluation"]).read_table("evaluations.parquet")
    assert [row.value for row in found.metrics] == rows["value"].to_pylist()
    assert found.code.digest is not None
    assert "store" not in found.settings
    assert "execution" not in found.settings


def test_the_file_in_the_store_reads_back(small: SmallStore) -> None:
    """Byte for byte the same however often it is written."""
    where = write_reproduction(small.artifacts, small.record)
    first = small.artifacts.store.read_bytes(f"reproductions/{small.run_id}.json")
    assert read_reproduction(where.removeprefix("file://")) == describe_run(
        small.artifacts, small.record
    )
    write_reproduction(small.artifacts, small.record)
    assert small.artifacts.store.read_bytes(f"reproductions/{small.run_id}.json") == first


def test_the_copy_for_others_names_no_place(small: SmallStore, tmp_path: Path) -> None:
    """Paths and URLs become names beside the file; an id of a hub stays what it is."""
    settings: dict[str, Any] = {
        **small.record.settings,
        "model": {"id": "/home/somebody/models/mine", "name": "tiny"},
        "scorer": {"kind": "lexicon", "words": "s3://secret-bucket/words.txt"},
        "components": {"positions": "occlusion"},
        "further_scorers": [{"kind": "classifier", "model": "owner/judge", "name": "judge"}],
    }
    settings["sources"] = [
        {**source, "uri": f"/home/somebody/data/{source['name']}/*.csv"}
        for source in small.record.settings["sources"]
    ]
    record = small.record.model_copy(update={"settings": settings})
    found = describe_run(small.artifacts, record).without_places()
    text = found.encode().decode()
    assert "somebody" not in text
    assert "secret-bucket" not in text
    assert found.settings["model"]["id"] == found.model.id == "./mine"
    assert found.settings["further_scorers"][0]["model"] == "owner/judge"
    settled = settle_settings(RefreshSettings, found.settings, tmp_path, (), "test")
    assert settled.sources[0].uri == str(tmp_path / "*.csv")
    assert settled.scorer.words == str(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        ("{", "JSONDecodeError"),
        ("{}", "ValidationError"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: str | None, found: str) -> None:
    """With where such files are."""
    path = tmp_path / "reproduce.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=f"{found}.*reproductions/"):
        read_reproduction(str(path))


@pytest.mark.parametrize("change", [{"format": 2}, {"command": "tune"}])
def test_a_file_of_another_form_is_refused(
    small: SmallStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Rather than half understood."""
    document = json.loads(describe_run(small.artifacts, small.record).encode())
    path = tmp_path / "reproduce.json"
    path.write_text(json.dumps(document | change))
    with pytest.raises(SettingsError, match="Use the version that wrote it"):
        read_reproduction(str(path))
