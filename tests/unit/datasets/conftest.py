"""Fixtures of the datasets tests: ingest a source, and look at what came out.

All texts here are made up and neutral. The real files are offensive: tests on them
(test_reading_real_files.py) look at counts and digests only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base.schemas import REJECTED_ROWS, SAMPLES, SOURCE_FILES
from eigenshift.datasets.ingestion import FileRecords, combine_records
from eigenshift.datasets.reading import list_sources, read_file
from eigenshift.datasets.stages import READ_FILE
from eigenshift.settings import IngestionSettings, SourceSettings
from eigenshift.store.workspace import Workspace

ROOT = Path(__file__).parents[3]
ANY_ROWS = {"max_rejected_share": 1.0, "max_unknown_labels": 1.0}
"""Ingestion settings for files of mostly bad rows."""


@dataclass
class Outcome:
    """The tables and facts of one ingest; its representation shows counts, never texts."""

    folder: Path
    facts: dict[str, Any]
    samples: pa.Table = field(repr=False)
    rejected: list[dict[str, Any]] = field(repr=False)
    files: list[dict[str, Any]] = field(repr=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Samples as dictionaries."""
        return self.samples.to_pylist()

    @property
    def texts(self) -> list[str]:
        """Texts of the samples."""
        return self.samples["text"].to_pylist()

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """Row number and reason of each rejected row."""
        return [(row["source_row"], row["reason"]) for row in self.rejected]

    def attributes(self, index: int = 0) -> dict[str, Any]:
        """Attributes of one sample."""
        return json.loads(self.samples["attributes"][index].as_py())


def read_outcome(workspace: Workspace) -> Outcome:
    """Read the tables of a workspace and check the promises that hold for every ingest."""
    folder = workspace.folder
    shards = sorted(folder.glob("samples-*.parquet"))
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    samples = pa.concat_tables([pq.read_table(path) for path in shards])
    outcome = Outcome(
        folder=folder,
        facts=workspace.facts,
        samples=samples,
        rejected=pq.read_table(folder / "rejected_rows.parquet").to_pylist(),
        files=pq.read_table(folder / "source_files.parquet").to_pylist(),
    )
    assert samples.schema.equals(SAMPLES)
    assert pq.read_schema(folder / "rejected_rows.parquet").equals(REJECTED_ROWS)
    assert pq.read_schema(folder / "source_files.parquet").equals(SOURCE_FILES)
    check_accounting(outcome)
    return outcome


def check_accounting(outcome: Outcome) -> None:
    """Rows 1 to rows_read of every file are, each once, a sample or a rejected row."""
    kept = zip(
        outcome.samples["source_uri"].to_pylist(),
        outcome.samples["source_row"].to_pylist(),
        strict=True,
    )
    refused = ((row["source_uri"], row["source_row"]) for row in outcome.rejected)
    found = Counter([*kept, *refused])
    expected = Counter(
        (file["source_uri"], row)
        for file in outcome.files
        for row in range(1, file["rows_read"] + 1)
    )
    assert (found == expected) is True, "rows read differ from samples + rejected rows"
    ids = outcome.samples["sample_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert outcome.facts == {
        "rows_read": sum(file["rows_read"] for file in outcome.files),
        "samples": outcome.samples.num_rows,
        "rejected": dict(sorted(Counter(row["reason"] for row in outcome.rejected).items())),
        "files": len(outcome.files),
    }


Ingest = Callable[..., Outcome]


def ingest_source(
    source: SourceSettings, ingestion: IngestionSettings, workspace: Workspace
) -> None:
    """Read each file of a source by itself, then combine them, as the two stages do."""
    with tempfile.TemporaryDirectory() as scratch:
        files = []
        for place, file in enumerate(list_sources(source)):
            folder = Path(scratch) / str(place)
            folder.mkdir()
            read_file(
                file,
                ingestion.max_characters,
                Workspace(folder),
                max_rejected_share=ingestion.max_rejected_share,
                max_unknown_labels=ingestion.max_unknown_labels,
            )
            files.append(FileRecords(*(folder / table.file for table in READ_FILE.tables)))
        combine_records(files, ingestion.rows_per_shard, workspace)


@pytest.fixture(scope="session")
def ingest(tmp_path_factory: pytest.TempPathFactory) -> Ingest:
    """Ingest a source given as keyword arguments; `ingestion` holds the ingestion settings."""

    def ingest_settings(ingestion: dict[str, Any] | None = None, **source: Any) -> Outcome:
        source.setdefault("name", "demo")
        workspace = Workspace(tmp_path_factory.mktemp("workspace"))
        ingest_source(SourceSettings(**source), IngestionSettings(**(ingestion or {})), workspace)
        return read_outcome(workspace)

    return ingest_settings


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str], str]:
    """Write a file and return its path."""

    def write_file(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real, offensive files; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("EIGENSHIFT_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "jigsaw" / "train.csv").is_file():
        pytest.skip(f"real data not found in {folder}; set EIGENSHIFT_REAL_DATA")
    return folder
