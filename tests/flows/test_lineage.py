"""OpenLineage events: what they say, whom they are sent to, and that they end no run."""

from __future__ import annotations

import builtins
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from eigenshift.ledger.runs import RunRecord, finish_run
from flows import lineage
from flows.journal import RunJournal
from flows.lineage import RunLineage, describe_run, is_configured, name_place
from tests.support.small_store import build_small_store, make_settings

ROOT = "s3://bucket/store"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but a test's own."""
    for name in list(lineage.os.environ):
        if name.startswith("OPENLINEAGE"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    """Of a promoted run."""
    found = build_small_store(str(tmp_path / "small")).record
    found.release = "v1"
    return found


def encode(record: RunRecord, *, is_stopped: bool = False) -> dict[str, Any]:
    """An event as it is sent."""
    from openlineage.client.serde import Serde

    event = describe_run(record, ROOT, is_stopped=is_stopped)
    found: dict[str, Any] = json.loads(Serde.to_json(event))
    return found


def test_an_event_is_one_of_the_specification(record: RunRecord) -> None:
    """Read back by the classes that OpenLineage makes from its schema, with their checks."""
    from openlineage.client.generated import base

    event = encode(record)
    assert set(event) == {
        *("eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL")
    }
    assert event["schemaURL"] == base.RunEvent._get_schema()
    base.RunEvent(
        eventType=base.EventType(event["eventType"]),
        eventTime=event["eventTime"],
        run=base.Run(runId=event["run"]["runId"]),
        job=base.Job(namespace=event["job"]["namespace"], name=event["job"]["name"]),
        producer=event["producer"],
    )
    named = [*event["inputs"], *event["outputs"], event["run"], event["job"]]
    facets = [facet for item in named for facet in item.get("facets", {}).values()]
    for item in event["outputs"]:
        facets += item.get("outputFacets", {}).values()
    assert facets
    for facet in facets:
        assert facet["_producer"] == event["producer"]
        assert facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")


def test_a_run_is_told_with_its_data(record: RunRecord) -> None:
    """Job and run, what went in, a data set for each kind of artifact and the release."""
    event = encode(record)
    assert event["job"]["namespace"] == "eigenshift"
    assert event["job"]["name"].startswith("refresh.")
    tags = {tag["key"]: tag["value"] for tag in event["run"]["facets"]["tags"]["tags"]}
    assert tags == {"eigenshift_run_id": record.run_id, "eigenshift_status": record.status}
    assert len(event["inputs"]) == len(record.settings["sources"]) + 1
    outputs = {item["name"]: item for item in event["outputs"]}
    kinds = {f"store/artifacts/{use.kind}" for use in record.artifacts}
    (releases,) = set(outputs) - kinds
    assert set(outputs) > kinds
    assert releases.startswith("store/releases/")
    assert outputs[releases]["facets"]["version"]["datasetVersion"] == "v1"
    assert {item["namespace"] for item in event["outputs"]} == {"s3://bucket"}
    (patch,) = {use.fingerprint for use in record.artifacts if use.kind == "evaluation"}
    version = outputs["store/artifacts/evaluation"]["facets"]["version"]["datasetVersion"]
    assert version == patch


def test_start_and_end_are_of_one_run(record: RunRecord) -> None:
    """The same id; nothing comes out at the start; the namespace is the environment's."""
    end = encode(record)
    record.finished_at = None
    start = encode(record)
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == end["run"]["runId"]
    assert start.get("outputs", []) == []


@pytest.mark.parametrize(
    ("status", "is_stopped", "expected"),
    [
        ("held", False, "COMPLETE"),
        ("failed", False, "FAIL"),
        ("suspended", False, "ABORT"),
        ("failed", True, "ABORT"),
    ],
)
def test_how_a_run_ended_is_told(
    record: RunRecord, status: Any, is_stopped: bool, expected: str
) -> None:
    """A held run did all it was to do; an error is what the record has."""
    finish_run(record, status, error=None if status == "held" else "made up")
    event = encode(record, is_stopped=is_stopped)
    assert event["eventType"] == expected
    error = event["run"]["facets"].get("errorMessage", {})
    assert error.get("message") == record.error


@pytest.mark.parametrize(
    ("url", "kind", "expected"),
    [
        ("/data/x.csv", "", ("file", "/data/x.csv")),
        ("file:///data/x.csv", "", ("file", "/data/x.csv")),
        ("s3://bucket/a/b.csv?endpoint_url=http://x", "", ("s3://bucket", "a/b.csv")),
        ("https://host/a.csv", "", ("https://host", "a.csv")),
        ("org/data", "datasets", ("https://huggingface.co", "datasets/org/data")),
        ("gpt2", "models", ("https://huggingface.co", "models/gpt2")),
    ],
)
def test_places_are_named_by_openlineages_rules(
    url: str, kind: str, expected: tuple[str, str]
) -> None:
    """Without the options of a URL."""
    assert name_place(url, kind) == expected


def test_a_folder_is_no_id_of_the_hub(tmp_path: Path) -> None:
    """Where there is one of that name."""
    (tmp_path / "model").mkdir()
    assert name_place("model", "models") == ("file", str(tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__TYPE"]
)
def test_events_are_off_until_they_are_configured(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By OpenLineage's own variables, its file, or not; and can be switched off."""
    assert not is_configured()
    monkeypatch.setenv(name, "x")
    assert is_configured()
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert not is_configured()


def test_a_file_configures_events(tmp_path: Path) -> None:
    """In the working folder."""
    (tmp_path / "openlineage.yml").write_text("transport: {type: noop}")
    assert is_configured()


def test_a_run_writes_its_events_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start and end, of a run that failed too."""
    log = tmp_path / "events.jsonl"
    for name, value in {"TYPE": "file", "LOG_FILE_PATH": str(log), "APPEND": "true"}.items():
        monkeypatch.setenv(f"OPENLINEAGE__TRANSPORT__{name}", value)
    journal = RunJournal("refresh", make_settings(str(tmp_path / "store")))
    with pytest.raises(ValueError, match="zorbfool"), journal.recording():
        raise ValueError("zorbfool")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "FAIL"]
    assert "zorbfool" not in log.read_text()


def test_an_event_that_cannot_be_sent_ends_no_run(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, by the error's type, and no further one is tried."""

    class Broken:
        def emit(self, _event: Any) -> None:
            raise ConnectionError("zorbfool")

    monkeypatch.setattr(lineage, "is_configured", lambda: True)
    monkeypatch.setattr(lineage, "_make_client", Broken)
    told = RunLineage(ROOT)
    with caplog.at_level(logging.WARNING):
        told.tell(record)
        told.tell(record)
    assert caplog.text.count("no events of this run (ConnectionError)") == 1
    assert "zorbfool" not in caplog.text


def test_a_missing_client_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to install; the run goes on."""
    found = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("openlineage"):
            raise ImportError(name)
        return found(name, *arguments, **named)

    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with caplog.at_level(logging.WARNING):
        RunLineage(ROOT)
    assert "eigenshift[openlineage]" in caplog.text
