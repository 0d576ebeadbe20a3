"""One JSON from which a run can be repeated: settings, digests of all it read, code, numbers.

Reads a run's record, its manifests and its evaluation; writes the file into the store
(`reproductions/<run_id>.json`) or beside an export. Holds no text of any sample. The copy beside an
export names no place on the run's machine: files stand there by their names alone, relative to
the file itself. Repeating and comparing is `replay.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import eigenshift
from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import RunRecord
from eigenshift.model.files import is_hub_id
from eigenshift.settings import SourceFormat, map_locations, parse_settings
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.source_files import open_file

FORMAT = 1
FILE_NAME = "reproduce.json"
COMMANDS = ("refresh",)
"""Commands whose runs can be repeated: a release is always a refresh's."""
LEFT_OUT = ("execution", "store")
"""Sections that say how fast and where: they change no number, and may name machines."""


class DataFile(BaseModel):
    """A source file as the run read it; a dataset of a hub counts as one file."""

    dataset: str
    file: str
    sha256: str
    bytes: int
    rows_read: int


class ModelFiles(BaseModel):
    """The model, and its files one by one where the run noted them."""

    id: str
    digest: str
    files: dict[str, str] = {}


class ScorerFiles(BaseModel):
    """A scorer, by all that decides its scores."""

    name: str
    digest: str


class Code(BaseModel):
    """The library: its version, and a digest of its modules and SQL."""

    version: str
    digest: str | None


class Metric(BaseModel):
    """One row of an evaluation."""

    arm: str
    scorer: str | None
    metric: str
    slice: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None


class Reproduction(BaseModel):
    """All of it.

    Attributes:
        settings: Those that change numbers.
        code: Of the run; the digest is that of the code that wrote this file, None if of another
            version than the run's.
        versions: Of the libraries that shape results.
        machine: System and processor.
    """

    model_config = ConfigDict(protected_namespaces=())
    format: int = FORMAT
    run_id: str
    command: str
    judged: str
    settings: dict[str, Any]
    model: ModelFiles
    data: list[DataFile]
    scorers: list[ScorerFiles]
    code: Code
    versions: dict[str, str]
    machine: str
    metrics: list[Metric]

    def without_places(self) -> Reproduction:
        """A copy that names files and folders, and not where they lie."""
        settings = map_locations(self.settings, _name_beside)
        model = self.model.model_copy(update={"id": settings["model"]["id"]})
        return self.model_copy(update={"settings": settings, "model": model})

    def encode(self) -> bytes:
        """As it is written."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()


def describe_run(artifacts: ArtifactStore, record: RunRecord) -> Reproduction:
    """Gather from the store what a finished refresh was made of and found.

    Raises:
        ArtifactError: The run did not come to an evaluation, or its artifacts were collected.
    """
    settings = parse_settings(record.settings, "run settings").model_dump(mode="json")
    model = artifacts.open(record.find_artifact("model")).manifest.facts
    evaluation = artifacts.open(record.find_artifact("evaluation"))
    rows = evaluation.read_table(tables.EVALUATIONS.file).to_pylist()
    is_own_code = record.code_version == eigenshift.__version__
    return Reproduction(
        run_id=record.run_id,
        command=record.command,
        judged=record.judged,
        settings={name: value for name, value in settings.items() if name not in LEFT_OUT},
        model=ModelFiles(
            id=settings["model"]["id"], digest=model["digest"], files=model.get("files", {})
        ),
        data=list(_list_data(artifacts, record, settings)),
        scorers=list(_list_scorers(artifacts, record, settings)),
        code=Code(version=record.code_version, digest=digest_code() if is_own_code else None),
        versions=record.versions,
        machine=f"{platform.system()} {platform.machine()}",
        metrics=[Metric.model_validate(row) for row in rows],
    )


def write_reproduction(artifacts: ArtifactStore, record: RunRecord) -> str:
    """Write the file of a run into its store, places included; returns where it is.

    Raises:
        ArtifactError: As `describe_run`.
    """
    path = f"reproductions/{record.run_id}.json"
    artifacts.store.write_bytes(path, describe_run(artifacts, record).encode())
    return artifacts.store.uri(path)


def read_reproduction(uri: str) -> Reproduction:
    """Read a file that a release or an export wrote.

    Args:
        uri: Path or URL.

    Raises:
        SettingsError: There is none, or it is not one that this version can read.
    """
    try:
        with open_file(uri) as handle:
            document = json.loads(handle.read())
        found = Reproduction.model_validate(document)
    except (OSError, ValueError, ValidationError) as error:
        kind = "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise SettingsError(
            f"{uri}: expected a {FILE_NAME} as a release or an export writes it, found: {kind}. A "
            f"store keeps those of its releases in reproductions/."
        ) from error
    if found.format != FORMAT or found.command not in COMMANDS:
        raise SettingsError(
            f"{uri}: expected format {FORMAT} of a {' or '.join(COMMANDS)}, found format "
            f"{found.format} of a {found.command}. Use the version that wrote it, "
            f"{found.code.version}."
        )
    return found


@lru_cache(maxsize=1)
def digest_code() -> str:
    """sha256 over the library's modules and SQL, wherever it is installed."""
    folder = Path(eigenshift.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".sql"):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def name_file(uri: str) -> str:
    """What a file is called wherever it lies: the last part of its path or URL."""
    return PurePosixPath(uri.rstrip("/")).name or uri


def _name_beside(place: str) -> str:
    """A file or folder as if it lay beside the reproduction; an id of a hub stays as it is."""
    return place if is_hub_id(place) else f"./{name_file(place)}"


def _list_data(
    artifacts: ArtifactStore, record: RunRecord, settings: Mapping[str, Any]
) -> Iterator[DataFile]:
    """Every file behind the run's samples."""
    hub = {
        source["name"]
        for source in settings["sources"]
        if source["format"] == SourceFormat.huggingface.value
    }
    for reference in _list_artifacts(record, "samples"):
        rows = artifacts.open(reference).read_table(tables.SOURCE_FILES.file).to_pylist()
        for row in rows:
            is_hub = row["dataset"] in hub
            yield DataFile(
                dataset=row["dataset"],
                file=row["dataset"] if is_hub else name_file(row["source_uri"]),
                sha256=row["sha256"],
                bytes=row["bytes"],
                rows_read=row["rows_read"],
            )


def _list_scorers(
    artifacts: ArtifactStore, record: RunRecord, settings: Mapping[str, Any]
) -> Iterator[ScorerFiles]:
    """The deciding scorer and further ones, by their own names."""
    found: dict[str, str] = {}
    for kind in ("scores", "further_scores"):
        for reference in _list_artifacts(record, kind):
            manifest = artifacts.open(reference).manifest
            name = str(manifest.settings.get("scorer", settings["scorer"]["name"]))
            digests = [item.fingerprint for item in manifest.inputs if item.kind == "classifier"]
            if digests:
                found[name] = digests[0]
    return (ScorerFiles(name=name, digest=digest) for name, digest in found.items())


def _list_artifacts(record: RunRecord, kind: str) -> Sequence[ArtifactReference]:
    """Different artifacts of a kind, in the order the run used them."""
    uses = (use for use in record.artifacts if use.kind == kind)
    return list(
        dict.fromkeys(ArtifactReference(kind=use.kind, fingerprint=use.fingerprint) for use in uses)
    )
