"""Runs that an operator cancels, suspends and retries in Prefect's UI, and who is told of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from eigenshift.ledger.presence import list_present
from eigenshift.ledger.runs import RunRecord
from eigenshift.store.storage import Store
from tests.support.service_stack import DEPLOYMENTS, Stack, wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

WAITING = 300.0
SECONDS_TO_NOTICE = 3.0
"""For a worker, that a process of its has ended."""


@pytest.fixture
def settings(
    stack: Stack, small_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, request: Any
) -> dict[str, Any]:
    """Long enough to be met at work, in a store of the test's own, which this process may read."""
    for name, value in stack.storage.environment.items():
        monkeypatch.setenv(name, value)
    long = json.loads(json.dumps(small_settings))
    long["store"] = f"{stack.store}-{request.node.name}"
    long["generation"] |= {"n_samples": 200, "n_tokens": 40}
    return long  # type: ignore[no-any-return]


def start(stack: Stack, settings: dict[str, Any]) -> str:
    """Start a refresh, and wait until it has finished a stage and is at work on another."""
    deployment = stack.find_deployment("refresh/refresh-on-demand")
    run_id = stack.start_run(deployment, settings)
    wait_until(lambda: any(record.stages for record in read_records(settings)), WAITING)
    return run_id


def read_records(settings: dict[str, Any]) -> list[RunRecord]:
    """The records of a store, the earliest first."""
    store = Store(settings["store"])
    paths = sorted(path for path in store.list_paths("runs") if path.endswith(".json"))
    return [RunRecord.model_validate_json(store.read_bytes(path)) for path in paths]


def count_slots(stack: Stack) -> int:
    """Slots of the model's limit that somebody holds."""
    limits = stack.ask("/v2/concurrency_limits/filter", {})
    found: int = sum(limit["active_slots"] for limit in limits if "refresh" in limit["name"])
    return found


def is_running(run_id: str) -> bool:
    """Whether a process of this machine works on a flow run: its environment names it."""
    environments = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile
            environments.append(path.read_bytes())
    return any(run_id.encode() in environment for environment in environments)


def choose(page: Page, stack: Stack, run_id: str, name: str) -> None:
    """Choose from the menu of a run's page, and confirm."""
    page.goto(f"{stack.ui_url}/v2/runs/flow-run/{run_id}")
    expect(page.get_by_role("tab", name="Artifacts")).to_be_visible()
    page.locator("button[aria-haspopup=menu]").last.click()
    page.get_by_role("menuitem", name=name).click()
    page.get_by_role("dialog").get_by_role("button", name=name).or_(
        page.get_by_role("alertdialog").get_by_role("button", name=name)
    ).last.click()


def wait_for_state(stack: Stack, run_id: str, name: str) -> dict[str, Any]:
    """The run, once it is in a state."""

    def ask() -> Any:
        run = stack.ask(f"/flow_runs/{run_id}", method="GET")
        return run if run["state_name"] == name else None

    found: dict[str, Any] = wait_until(ask, WAITING)
    return found


def test_a_cancelled_run_leaves_all_in_order_and_the_next_goes_on(
    signed_in: Page, stack: Stack, settings: dict[str, Any]
) -> None:
    """State, record, claims and slot; started again it does what is left."""
    run_id = start(stack, settings)
    choose(signed_in, stack, run_id, "Cancel")
    wait_for_state(stack, run_id, "Cancelled")
    (record,) = wait_until(
        lambda: [it for it in read_records(settings) if it.finished_at is not None], WAITING
    )
    assert record.status == "failed"
    assert "cancelled in Prefect" in (record.error or "")
    assert wait_until(lambda: not list_present(Store(settings["store"]), "run"))
    assert wait_until(lambda: count_slots(stack) == 0)
    short = settings | {"generation": settings["generation"] | {"n_samples": 3, "n_tokens": 8}}
    again = stack.wait_for_run(
        stack.start_run(stack.find_deployment("refresh/refresh-on-demand"), short)
    )
    assert again["state_type"] == "COMPLETED", stack.read_logs(again["id"])
    *_, second = read_records(settings)
    reading = next(stage for stage in second.stages if stage.name == "read_file")
    assert reading.shards_cached == reading.shards > 0


def test_a_suspended_run_is_recorded_as_that_and_goes_on_when_resumed(
    stack: Stack, settings: dict[str, Any]
) -> None:
    """Not as failed; its slot is free meanwhile."""
    run_id = start(stack, settings)
    until = datetime.now(timezone.utc) + timedelta(hours=1)
    details = {"pause_timeout": until.isoformat(), "pause_reschedule": True}
    state = {"type": "PAUSED", "name": "Suspended", "state_details": details}  # as the UI sends it
    stack.ask(f"/flow_runs/{run_id}/set_state", {"state": state, "force": True})
    (record,) = wait_until(
        lambda: [it for it in read_records(settings) if it.finished_at is not None], WAITING
    )
    assert record.status == "suspended"
    assert wait_until(lambda: count_slots(stack) == 0)
    # Prefect's worker ends with an error if a run is resumed whose process it still waits for.
    wait_until(lambda: not is_running(run_id))
    time.sleep(SECONDS_TO_NOTICE)
    stack.ask(f"/flow_runs/{run_id}/resume", {})
    wait_until(lambda: len(read_records(settings)) == 2, WAITING)
    stack.ask(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    wait_for_state(stack, run_id, "Cancelled")


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A URL, and what was posted to it."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", posted
    finally:
        server.shutdown()
        server.server_close()


def test_a_failed_run_is_told_and_can_be_retried_in_the_ui(
    signed_in: Page, stack: Stack, settings: dict[str, Any]
) -> None:
    """By the recipe of the runbook, with a block of type custom webhook."""
    wrong = settings | {"model": settings["model"] | {"id": "/no/such/folder"}}
    with webhook() as (url, posted):
        block = make_webhook_block(stack, url)
        told = stack.run(
            "python", str(DEPLOYMENTS / "automations.py"), EIGENSHIFT_NOTIFY_BLOCK=block
        )
        assert told.returncode == 0, told.stderr
        deployment = stack.find_deployment("refresh/refresh-on-demand")
        run = stack.wait_for_run(stack.start_run(deployment, wrong))
        assert run["state_type"] == "FAILED"
        wait_until(lambda: any(run["name"] in str(item) for item in posted))
    choose(signed_in, stack, run["id"], "Retry")
    retried = wait_until(
        lambda: (
            found
            if (found := stack.wait_for_run(run["id"]))["run_count"] > run["run_count"]
            else None
        ),
        WAITING,
    )
    assert retried["state_type"] == "FAILED"
    assert [record.status for record in read_records(settings)] == ["failed", "failed"]


def make_webhook_block(stack: Stack, url: str) -> str:
    """Id of a new block that posts subject and body to a URL."""
    block_type = stack.ask("/block_types/slug/custom-webhook", method="GET")
    schemas = {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}}
    document = {
        "name": "operators",
        "block_type_id": block_type["id"],
        "block_schema_id": stack.ask("/block_schemas/filter", schemas)[0]["id"],
        "data": {
            "name": "operators",
            "url": url,
            "json_data": {"subject": "{{subject}}", "body": "{{body}}"},
        },
    }
    return str(stack.ask("/block_documents/", document)["id"])
