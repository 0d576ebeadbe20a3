"""The shipped set-up, run for real: deployments, schedules, triggers, access, refreshes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import psutil
import pytest

from eigenshift.settings import RefreshSettings
from flows.quick import QuickRefresh
from tests.support.s3_server import READER_KEY, READER_SECRET
from tests.support.service_stack import AUTH, DEPLOYMENTS, POOL, ROOT, USER, Stack, wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]

DEPLOYED = {
    "refresh-quick": "refresh-quick",
    "refresh-on-demand": "refresh",
    "refresh-nightly": "refresh",
    "refresh-on-new-data": "refresh",
    "watch-sources": "watch",
    "compare-weekly": "compare",
}


@pytest.fixture(scope="module")
def finished_run(stack: Stack, small_settings: dict[str, Any]) -> dict[str, Any]:
    """`refresh-on-demand`, started through the API and carried out by the worker."""
    deployment = stack.find_deployment("refresh/refresh-on-demand")
    run = stack.wait_for_run(stack.start_run(deployment, small_settings))
    assert run["state_type"] == "COMPLETED", stack.read_logs(run["id"])
    return run


def test_everything_is_deployed_and_its_settings_are_valid(stack: Stack) -> None:
    """Each deployment has the form's schema, and parameters that make settings."""
    for name, flow in DEPLOYED.items():
        deployment = stack.find_deployment(f"{flow}/{name}")
        assert deployment["work_pool_name"] == POOL
        assert deployment["enforce_parameter_schema"]
        parameters = deployment["parameters"]
        if name == "refresh-quick":
            assert QuickRefresh.model_validate(parameters["changes"]).load().store == stack.store
        else:
            RefreshSettings.model_validate(parameters["settings"])
        assert str(ROOT) not in json.dumps(parameters)


def make_notification_block(stack: Stack) -> str:
    """Id of a new block that would post to nobody."""
    block_type = stack.ask("/block_types/slug/custom-webhook", method="GET")
    schemas = {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}}
    document = {
        "name": "nobody",
        "block_type_id": block_type["id"],
        "block_schema_id": stack.ask("/block_schemas/filter", schemas)[0]["id"],
        "data": {"name": "nobody", "url": "http://127.0.0.1:9"},
    }
    return str(stack.ask("/block_documents/", document)["id"])


def list_switches(deployment: Any) -> dict[str, bool]:
    """Which schedules of a deployment are on."""
    return {schedule["slug"]: schedule["active"] for schedule in deployment["schedules"]}


def list_actions(automations: Any) -> dict[str, Any]:
    """What each automation does, by name."""
    return {automation["name"]: automation["actions"] for automation in automations}


def test_deploying_again_changes_nothing(stack: Stack) -> None:
    """After an upgrade the same command is run again: schedules stay on, notifications stay."""
    nightly = stack.find_deployment("refresh/refresh-nightly")
    schedule = f"/deployments/{nightly['id']}/schedules/{nightly['schedules'][0]['id']}"
    stack.ask(schedule, {"active": True}, "PATCH")
    block = make_notification_block(stack)
    told = stack.run("python", str(DEPLOYMENTS / "automations.py"), EIGENSHIFT_NOTIFY_BLOCK=block)
    assert told.returncode == 0, told.stderr
    before = {name: stack.find_deployment(f"{flow}/{name}") for name, flow in DEPLOYED.items()}
    automations = stack.ask("/automations/filter", {})
    again = stack.run(str(DEPLOYMENTS / "deploy"))
    assert again.returncode == 0, again.stdout + again.stderr
    for name, flow in DEPLOYED.items():
        found = stack.find_deployment(f"{flow}/{name}")
        assert found["id"] == before[name]["id"]
        assert found["parameters"] == before[name]["parameters"]
        assert list_switches(found) == list_switches(before[name])
    stack.ask(schedule, {"active": False}, "PATCH")
    found_again = stack.ask("/automations/filter", {})
    assert list_actions(found_again) == list_actions(automations)
    assert block in str(list_actions(found_again))


def test_calls_without_or_with_wrong_credentials_are_refused(stack: Stack) -> None:
    """401 for nobody, a wrong password and another scheme; only the health check is open."""
    url = f"{stack.api_url}/flow_runs/filter"
    assert httpx.post(url, json={}).status_code == 401
    assert httpx.post(url, json={}, auth=(USER, "wrong-password")).status_code == 401
    assert httpx.post(url, json={}, headers={"Authorization": f"Bearer {AUTH}"}).status_code == 401
    assert httpx.post(url, json={}, auth=(USER, AUTH.partition(":")[2])).status_code == 200
    assert httpx.get(f"{stack.api_url}/health").status_code == 200


def test_a_client_with_a_wrong_password_is_told_why(stack: Stack) -> None:
    """The scripts stop at once and name the variable."""
    found = stack.run(str(DEPLOYMENTS / "deploy"), PREFECT_API_AUTH_STRING="operator:wrong")
    assert found.returncode != 0
    assert "PREFECT_API_AUTH_STRING" in found.stderr
    assert "wrong" not in found.stderr


@pytest.mark.parametrize("auth", ["", "operator", "operator:short"])
def test_the_server_does_not_start_without_authentication(stack: Stack, auth: str) -> None:
    """No or a weak secret is an error, not a warning."""
    found = stack.run(str(DEPLOYMENTS / "start_server"), PREFECT_SERVER_API_AUTH_STRING=auth)
    assert found.returncode == 2
    assert "PREFECT_SERVER_API_AUTH_STRING" in found.stderr


def test_the_server_listens_on_loopback_only(stack: Stack) -> None:
    """By default nobody else on the network reaches it."""
    port = httpx.URL(stack.api_url).port
    addresses = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert addresses == {"127.0.0.1"}


def test_bad_settings_are_refused_before_a_run_starts(
    stack: Stack, small_settings: dict[str, Any]
) -> None:
    """409 with the field's name, for a value out of range and for a misspelt field."""
    deployment = stack.find_deployment("refresh/refresh-on-demand")
    for section, field, value in (("generation", "n_samples", 0), ("generation", "n_sample", 4)):
        bad = json.loads(json.dumps(small_settings))
        bad[section][field] = value
        answer = stack.client.post(
            f"/deployments/{deployment['id']}/create_flow_run",
            json={"parameters": {"settings": bad}},
        )
        assert answer.status_code == 409
        assert field in answer.text


def test_a_cron_deployment_gets_runs_once_it_is_switched_on(stack: Stack) -> None:
    """None while its schedule is off; with it on, runs are really scheduled."""
    deployment = stack.find_deployment("refresh/refresh-nightly")
    (schedule,) = deployment["schedules"]
    assert not schedule["active"]
    assert stack.list_runs(deployment) == []
    path = f"/deployments/{deployment['id']}/schedules/{schedule['id']}"
    stack.ask(path, {"active": True}, "PATCH")
    try:
        runs = wait_until(lambda: stack.list_runs(deployment))
    finally:
        stack.ask(path, {"active": False}, "PATCH")
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
    assert all(run["expected_start_time"][11:16] == "02:00" for run in runs)


def test_a_refresh_by_the_worker_is_in_the_store(
    stack: Stack, finished_run: dict[str, Any]
) -> None:
    """The store on S3 has its record; the audit answers from it; Prefect's state says the same."""
    sql = "select run_id, status, model_id from runs where command = 'refresh'"
    found = stack.run("eigenshift", "audit", "--store", stack.store, "--format", "json", sql)
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines() if line.strip().startswith("{")]
    rows = rows or json.loads(found.stdout)
    status = {"Held": "held", "Completed": "promoted"}[finished_run["state_name"]]
    assert [(row["status"], row["model_id"]) for row in rows] == [(status, "demo")]


def test_the_log_of_a_run_is_on_the_server(stack: Stack, finished_run: dict[str, Any]) -> None:
    """Lines of the library, with stages and rows."""
    lines = stack.read_whole_log(finished_run["id"])
    assert any("extract_activations" in line and "rows=" in line for line in lines)


def test_a_run_shows_what_it_found(stack: Stack, finished_run: dict[str, Any]) -> None:
    """One progress, results, picture, components without tokens, places, why it was held."""
    shown = stack.list_artifacts(finished_run["id"])
    (progress,) = (item for item in shown.values() if item["type"] == "progress")
    assert (progress["key"], progress["data"]) == ("refresh-progress", 100.0)
    results = json.loads(shown["refresh-results"]["data"])
    assert {"toxicity_rate", "perplexity", "tph"} <= {row["metric"] for row in results}
    told = shown["refresh-outcome"]["data"]
    assert "data:image/png;base64," in told
    assert stack.store in told
    assert "file://" not in told
    for key in ("refresh-results", "refresh-components"):
        assert f"(../artifact/{shown[key]['id']})" in told
    components = json.loads(shown["refresh-components"]["data"])
    assert components
    assert all("benefit" in row for row in components)
    assert not any("tokens_up" in row for row in components)
    if finished_run["state_name"] == "Held":
        reason = finished_run["state"]["message"]
        assert "expected" in reason
        assert reason.splitlines()[0] in told


def test_a_run_is_named_and_tagged(stack: Stack, finished_run: dict[str, Any]) -> None:
    """Model, data and time; how it ended; its tasks by what they are about."""
    assert finished_run["name"].startswith("demo on jigsaw, toxicn, ")
    status = {"Held": "held", "Completed": "promoted"}[finished_run["state_name"]]
    run = stack.ask(f"/flow_runs/{finished_run['id']}", method="GET")
    assert {"eigenshift", "model:demo", "data:jigsaw", f"status:{status}"} <= set(run["tags"])
    assert run["state"]["message"]
    asked = {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    names = {task["name"] for task in stack.ask("/task_runs/filter", asked)}
    assert {"read-file jigsaw 1 of 4", "ingest-source toxicn", "identify-model"} <= names


def test_a_run_tells_what_it_materialised(stack: Stack, finished_run: dict[str, Any]) -> None:
    """As events of assets, which an open-source server keeps."""
    asked = {"filter": {"event": {"prefix": ["prefect.asset.materialization."]}}, "limit": 50}
    found = wait_until(lambda: stack.ask("/events/filter", asked)["events"])
    keys = {event["resource"]["prefect.resource.id"] for event in found}
    assert {"eigenshift://demo/activations", "eigenshift://demo/patch"} <= keys
    related = {item["prefect.resource.id"] for event in found for item in event["related"]}
    assert f"prefect.flow-run.{finished_run['id']}" in related


def test_every_job_template_is_accepted_by_the_server(stack: Stack) -> None:
    """Pools for processes, containers and clusters, with and without GPU."""
    for path in sorted((DEPLOYMENTS / "work_pools").glob("*.json")):
        template = json.loads(path.read_text())
        pool = {"name": f"try-{path.stem}", "type": path.stem.removesuffix("-gpu")}
        found = stack.ask("/work_pools/", pool | {"base_job_template": template})
        assert found["base_job_template"] == template
        stack.ask(f"/work_pools/{pool['name']}", method="DELETE")


def test_new_data_starts_a_refresh(stack: Stack, small_settings: dict[str, Any]) -> None:
    """The watcher sees a change once, says so by an event, and the trigger starts a run."""
    watching = stack.find_deployment("watch/watch-sources")
    triggered = stack.find_deployment("refresh/refresh-on-new-data")
    stack.ask(f"/deployments/{triggered['id']}", {"work_queue_name": "parked"}, "PATCH")
    run = stack.wait_for_run(stack.start_run(watching, small_settings))
    assert run["state_type"] == "COMPLETED", stack.read_logs(run["id"])
    assert any("sources changed" in line for line in stack.read_whole_log(run["id"]))
    (started,) = wait_until(lambda: stack.list_runs(triggered))
    stack.ask(f"/flow_runs/{started['id']}", method="DELETE")
    again = stack.wait_for_run(stack.start_run(watching, small_settings))
    assert not any("sources changed" in line for line in stack.read_whole_log(again["id"]))


def test_a_read_only_key_audits_and_cannot_write(
    stack: Stack, finished_run: dict[str, Any]
) -> None:
    """An auditor's key reads the store; a refresh with it ends with a clear error."""
    stack.storage.open_to_reader(stack.store.split("/")[2])
    reader = {"AWS_ACCESS_KEY_ID": READER_KEY, "AWS_SECRET_ACCESS_KEY": READER_SECRET}
    sql = "select count(*) as n from evaluations"
    found = stack.run("eigenshift", "audit", "--store", stack.store, sql, **reader)
    assert found.returncode == 0, found.stderr
    verified = stack.run("eigenshift", "verify", "--store", stack.store, **reader)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    refused = stack.run(
        "eigenshift", "rollback", "--store", stack.store, "--model", "demo", **reader
    )
    assert refused.returncode != 0
    written = stack.run(
        "python",
        "-c",
        "import sys; from eigenshift.store.storage import Store; "
        "Store(sys.argv[1]).check_writable()",
        stack.store,
        **reader,
    )
    assert written.returncode != 0
    assert (
        "AccessDenied" in written.stderr
        or "Forbidden" in written.stderr
        or ("PermissionError" in written.stderr)
    )
