"""Prefect's asset events: which are sent, with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eigenshift.detection.stages import EXTRACT_ACTIVATIONS
from eigenshift.ledger.runs import start_run
from eigenshift.patches.stages import BUILD_PATCH
from eigenshift.settings import load_preset
from eigenshift.store.artifacts import ArtifactStore, StageResult
from eigenshift.store.workspace import Workspace
from flows import assets
from flows.assets import MAX_LISTED, tell_made, tell_released


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is sent, as inside a flow run on a server."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: sent.append(event))
    monkeypatch.setattr(assets, "has_server", lambda: True)
    monkeypatch.setattr(assets.FlowRunContext, "get", lambda: object())
    return sent


def make(url: str) -> StageResult:
    """A small artifact."""

    def work(workspace: Workspace) -> None:
        workspace.write_json("content.json", {})

    return ArtifactStore(url).produce("patch", step_version=1, settings={}, inputs=[], work=work)


def list_materialised(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of what was made, not of what it was made from."""
    return [event for event in events if event["event"].startswith("prefect.asset.mater")]


def test_a_patch_is_an_asset_of_its_model(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """The same from run to run; what was made is in the payload, what it is from is related."""
    record = start_run("refresh", load_preset("demo"))
    made = make(str(tmp_path))
    tell_made(record, "file:///s", BUILD_PATCH.name, [made])
    (event,) = list_materialised(events)
    assert event["event"] == "prefect.asset.materialization.succeeded"
    assert event["resource"] == {"prefect.resource.id": "eigenshift://demo/patch"}
    assert event["payload"]["artifacts"] == [f"file:///s/{made.reference.folder}"]
    related = {item["prefect.resource.id"] for item in event["related"]}
    assert {"eigenshift://demo/model", "eigenshift://data/jigsaw", "eigenshift"} <= related


def test_many_artifacts_are_one_event(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """Counted, and listed up to a bound."""
    record = start_run("refresh", load_preset("demo"))
    made = [make(str(tmp_path))] * (MAX_LISTED + 5)
    tell_made(record, "file:///s", EXTRACT_ACTIVATIONS.name, made)
    (event,) = list_materialised(events)
    assert event["payload"]["n_artifacts"] == len(made)
    assert len(event["payload"]["artifacts"]) == MAX_LISTED


def test_a_release_comes_from_its_patch(events: list[dict[str, Any]]) -> None:
    """And is an asset of the model."""
    record = start_run("refresh", load_preset("demo"))
    record.release = "v1"
    tell_released(record)
    (event,) = list_materialised(events)
    assert event["resource"]["prefect.resource.id"] == "eigenshift://demo/release"
    assert event["payload"] == {"run_id": record.run_id, "release": "v1"}
    assert event["related"][0]["prefect.resource.id"] == "eigenshift://demo/patch"


def test_nothing_is_sent_of_other_stages_or_of_what_was_there(
    tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    """Nor without a server."""
    record = start_run("refresh", load_preset("demo"))
    tell_made(record, "file:///s", "score_components", [make(str(tmp_path))])
    tell_made(record, "file:///s", BUILD_PATCH.name, [])
    assert events == []
