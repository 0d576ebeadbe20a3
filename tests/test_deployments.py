"""What `deployments/` promises, checked without running it: schemas, lint, secrets, access.

What can run here is run in tests/services; containers and clusters are validated only.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml

from eigenshift.settings import RefreshSettings
from flows.quick import QuickRefresh

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = ROOT / "deployments"
MANIFESTS = sorted((DEPLOYMENTS / "kubernetes").glob("*.yaml"))
SCRIPTS = ("deploy", "start_server", "start_worker", "storage/make_users")
TEMPLATES = ("process", "docker", "docker-gpu", "kubernetes", "kubernetes-gpu")
SECRET_NAMES = re.compile(r"PASSWORD|SECRET|AUTH_STRING|CONNECTION_URL|MC_HOST")
ENVIRONMENT = {
    "EIGENSHIFT_HOME": str(ROOT),
    "EIGENSHIFT_STORE": "s3://b/s",
    "EIGENSHIFT_POOL": "p",
    "EIGENSHIFT_FLOWS": "flows",
}


def read_prefect_file() -> Any:
    """prefect.yaml with the variables that `deploy` sets filled in."""
    text = (DEPLOYMENTS / "prefect.yaml").read_text()
    for name, value in ENVIRONMENT.items():
        text = text.replace("{{ $" + name + " }}", value)
    assert "{{" not in text  # no variable that `deploy` does not set
    return yaml.safe_load(text)


def read_manifests() -> Iterator[Any]:
    """Every Kubernetes document that is shipped."""
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def test_the_deployments_fit_prefects_own_model() -> None:
    """Names, work pools, schedules and triggers are what Prefect reads."""
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.events import DeploymentEventTrigger

    document = read_prefect_file()
    model = PrefectYamlModel.model_validate(document)
    assert len(model.deployments) == len({item.name for item in model.deployments})
    for item in document["deployments"]:
        for trigger in item.get("triggers", ()):
            DeploymentEventTrigger.model_validate(trigger)


def test_the_deployments_name_flows_that_exist_and_settings_that_are_valid() -> None:
    """Each entrypoint is a flow; each settings parameter is a whole RefreshSettings."""
    for item in read_prefect_file()["deployments"]:
        package, module, flow = item["entrypoint"].split(".")
        text = (ROOT / package / f"{module}.py").read_text()
        assert re.search(rf"^def {flow}\(", text, re.MULTILINE)
        parameters = item["parameters"]
        if flow == "refresh_quick":
            settings = QuickRefresh.model_validate(parameters["changes"]).load()
        else:
            settings = RefreshSettings.model_validate(parameters["settings"])
        assert ENVIRONMENT["EIGENSHIFT_HOME"] not in str(parameters)  # of no machine
        assert settings.store == ENVIRONMENT["EIGENSHIFT_STORE"]
        assert item["enforce_parameter_schema"]


def test_runs_do_not_listen_on_the_port_of_their_worker() -> None:
    """With metrics of the client on for both, each run of a process pool would crash."""
    for item in read_prefect_file()["deployments"]:
        environment = item["work_pool"]["job_variables"]["env"]
        assert environment["PREFECT_CLIENT_METRICS_ENABLED"] == "false"


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["--trial"], {"EIGENSHIFT_SERVER_HOST": "0.0.0.0"}, "EIGENSHIFT_SERVER_HOST"),  # noqa: S104
        (["--tria"], {}, "expected --trial"),
        ([], {}, "start_server --trial"),
    ],
)
def test_a_server_without_a_password_is_on_loopback_and_asked_for(
    words: list[str], environment: dict[str, str], expected: str
) -> None:
    """By a word of its own."""
    found = subprocess.run(
        [str(DEPLOYMENTS / "start_server"), *words],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert expected in found.stderr


def test_schedules_are_off_until_somebody_switches_them_on() -> None:
    """Nothing starts by itself on the demo's settings."""
    deployments = {item["name"]: item for item in read_prefect_file()["deployments"]}
    scheduled = {
        name: item["schedules"] for name, item in deployments.items() if "schedules" in item
    }
    assert set(scheduled) == {"refresh-nightly", "watch-sources", "compare-weekly"}
    assert not any(entry["active"] for entries in scheduled.values() for entry in entries)


@pytest.mark.parametrize("day", [(2027, 3, 28), (2026, 10, 25)], ids=["forward", "back"])
def test_schedules_are_even_where_clocks_change(day: tuple[int, int, int]) -> None:
    """By Prefect's own reckoning, around both changes: no run early, none left out."""
    from prefect.server.schemas.schedules import CronSchedule

    start = datetime(*day, tzinfo=timezone.utc) - timedelta(days=1)
    schedules = [
        entry for item in read_prefect_file()["deployments"] for entry in item.get("schedules", [])
    ]
    assert len(schedules) == 3
    for entry in schedules:
        schedule = CronSchedule(cron=entry["cron"], timezone=entry["timezone"])
        seconds = [date.timestamp() for date in asyncio.run(schedule.get_dates(400, start))]
        steps = {after - before for before, after in itertools.pairwise(seconds)}
        assert len(steps) == 1, entry["slug"]


def test_operators_are_told_why_schedules_are_in_utc() -> None:
    """Where they are set, and in the runbook."""
    title = "Schedules and summer time"
    assert title in (DEPLOYMENTS / "prefect.yaml").read_text()
    assert f"## {title}" in (ROOT / "docs" / "runbook.md").read_text()


def test_the_trigger_waits_for_the_event_that_the_watcher_sends() -> None:
    """Same event name and same kind of resource on both sides."""
    from flows.watch import RESOURCE, SOURCES_CHANGED

    deployments = {item["name"]: item for item in read_prefect_file()["deployments"]}
    (trigger,) = deployments["refresh-on-new-data"]["triggers"]
    assert trigger["expect"] == [SOURCES_CHANGED]
    assert trigger["match"] == {"prefect.resource.id": f"{RESOURCE}.*"}


def read_slurm_options(script: str) -> dict[str, str]:
    """What the job's script asks Slurm for: the last word counts."""
    lines = re.findall(r"^#SBATCH (\S+?)[= ](\S+)$", script, re.MULTILINE)
    assert len(lines) == len(dict(lines)), "an option is given twice"
    return dict(lines)


@pytest.fixture
def slurm() -> Iterator[Any]:
    """The script that starts a cluster, as a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(DEPLOYMENTS / "slurm")
        import start_cluster

        yield start_cluster


def test_a_slurm_job_is_one_worker_as_tasks_want_it(slurm: Any) -> None:
    """One thread, a GPU, no profiler, no limit of Dask's own, and an end before the job's."""
    options = slurm.parse_options(
        [
            *("--queue", "gpu", "--account", "lab", "--cpus", "8", "--gpus", "1"),
            *("--memory", "64GB", "--walltime", "1-02:00:00", "--host", "127.0.0.1"),
            *("--python", "/shared/env/bin/python", "--prologue", "source /shared/store.env"),
        ]
    )
    with slurm.make_cluster(options) as cluster:
        script, address = cluster.job_script(), cluster.scheduler_address
    assert read_slurm_options(script) == {
        "-J": "eigenshift-worker",
        "-p": "gpu",
        "-A": "lab",
        "-n": "1",
        "--cpus-per-task": "8",
        "--mem": "60G",  # 64e9 bytes in GiB
        "-t": "1-02:00:00",
        "--gres": "gpu:1",
    }
    *prologue, worker = [line for line in script.splitlines() if line and line[0] != "#"]
    assert prologue == [
        "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
        "export OMP_NUM_THREADS=8",
        "source /shared/store.env",
    ]
    assert worker.startswith(f"/shared/env/bin/python -m distributed.cli.dask_worker {address} ")
    words = worker.split()
    assert words[words.index("--nthreads") + 1] == "1"
    limits = [words[place + 1] for place, word in enumerate(words) if word == "--memory-limit"]
    assert limits[-1] == "0"  # the last one counts
    assert "--resources GPU=1 " in f"{worker} "
    assert words[words.index("--lifetime") + 1] == "93300s"


def test_slurm_jobs_are_long_enough_for_their_workers(slurm: Any) -> None:
    """Too short a job, or a time that is none, is told before anything is started."""
    with pytest.raises(SystemExit, match="at least 10 minutes"):
        slurm.make_cluster(slurm.parse_options(["--walltime", "00:09:00"]))
    with pytest.raises(SystemExit, match="days"):
        slurm.make_cluster(slurm.parse_options(["--walltime", "4h"]))


def test_the_automations_fit_prefects_own_model() -> None:
    """With and without a notification block, which stays; held runs have the state of the flow."""
    sys.path.insert(0, str(DEPLOYMENTS))
    try:
        from automations import NOTIFIED, keep_notifications, read_automations
    finally:
        sys.path.remove(str(DEPLOYMENTS))
    from flows.refresh import HELD

    plain = {item.name: item for item in read_automations(None)}
    told = {item.name: item for item in read_automations("7f5f7d2e-1f7c-4d5a-9c53-0d7f4f2a8e11")}
    assert plain.keys() == told.keys()
    assert [action.type for action in plain[NOTIFIED].actions] == ["do-nothing"]
    assert [action.type for action in told[NOTIFIED].actions] == ["send-notification"]
    assert f"prefect.flow-run.{HELD}" in plain[NOTIFIED].trigger.expect
    keep_notifications(plain[NOTIFIED], told[NOTIFIED])
    assert plain[NOTIFIED].actions == told[NOTIFIED].actions


def test_the_job_templates_are_prefects_with_our_changes() -> None:
    """They are generated; a Prefect upgrade that changes them is noticed here."""
    words = [sys.executable, str(DEPLOYMENTS / "work_pools" / "generate.py"), "--check"]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_job_template_makes_a_job(name: str) -> None:
    """Prefect's worker builds its configuration from it; a Kubernetes job fits the API's schema."""
    import asyncio

    import kubernetes_validate
    from prefect.workers.process import ProcessJobConfiguration
    from prefect_docker.worker import DockerWorkerJobConfiguration
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    kind = name.removesuffix("-gpu")
    configurations: dict[str, Any] = {
        "process": ProcessJobConfiguration,
        "docker": DockerWorkerJobConfiguration,
        "kubernetes": KubernetesWorkerJobConfiguration,
    }
    template = json.loads((DEPLOYMENTS / "work_pools" / f"{name}.json").read_text())
    values = {"env": {"A": "1"}, "command": "prefect flow-run execute"}
    making = configurations[kind].from_template_and_values(
        template,
        values,
        client=object(),  # asked for blocks only, and there are none
    )
    made = asyncio.run(making)
    assert made.env["A"] == "1"
    if kind == "docker":
        assert bool(made.container_create_kwargs.get("device_requests")) == name.endswith("-gpu")
        assert not made.privileged
        compose = yaml.safe_load((DEPLOYMENTS / "containers" / "compose.yaml").read_text())
        assert made.networks == [f"{compose['name']}_default"]
    if kind == "kubernetes":
        manifest = made.job_manifest
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == (
            1 if name.endswith("-gpu") else None
        )
        for misplaced in (
            "completions",
            "parallelism",
        ):  # Prefect wants them; Kubernetes ignores them
            del manifest["spec"]["template"]["spec"][misplaced]
        container["env"] = [{"name": "A", "value": "1"}]  # as the worker writes it
        container["args"] = values["command"].split()
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_the_manifests_fit_kubernetes_schema() -> None:
    """Every document, without unknown fields."""
    import kubernetes_validate

    documents = list(read_manifests())
    assert {item["kind"] for item in documents} >= {"Deployment", "Service", "StatefulSet", "Role"}
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_worker_of_a_cluster_keeps_the_password_out_of_its_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs refer to the secret it reads itself; it watches the namespace its role is of."""
    from prefect_kubernetes.settings import KubernetesSettings

    (worker,) = [
        item
        for item in read_manifests()
        if item["kind"] == "Deployment" and item["metadata"]["name"] == "eigenshift-worker"
    ]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    variables = {item["name"]: item for item in container["env"]}
    for name, item in variables.items():
        if "value" in item:
            monkeypatch.setenv(name, item["value"])
    settings = KubernetesSettings()
    secret = variables["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    assert settings.worker.api_auth_string_secret_name == secret["name"]
    assert settings.worker.api_auth_string_secret_key == secret["key"]
    assert settings.observer.namespaces == {worker["metadata"]["namespace"]}


def test_containers_of_the_manifests_have_limits_and_no_privileges() -> None:
    """No secret in the text, no privilege, a memory limit each."""
    for document in read_manifests():
        if document["kind"] not in ("Deployment", "StatefulSet"):
            continue
        for container in document["spec"]["template"]["spec"]["containers"]:
            assert "memory" in container["resources"]["limits"]
            assert not container.get("securityContext", {}).get("privileged")
            for variable in container.get("env", ()):
                is_reference = variable["name"].endswith(("_SECRET_NAME", "_SECRET_KEY"))
                if SECRET_NAMES.search(variable["name"]) and not is_reference:
                    assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_the_compose_file_fits_the_specification() -> None:
    """Checked with the schema of compose-spec."""
    found = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.compose-spec"),
            str(DEPLOYMENTS / "containers" / "compose.yaml"),
        ],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout


def test_the_compose_file_takes_secrets_from_the_environment_and_publishes_on_loopback() -> None:
    """Only the server has a port, on 127.0.0.1 by default; every variable is in the example."""
    text = (DEPLOYMENTS / "containers" / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    published = {name: item["ports"] for name, item in services.items() if "ports" in item}
    assert published == {"server": ["${PUBLISH_ON:-127.0.0.1}:4200:4200"]}
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if SECRET_NAMES.search(name):
                assert re.search(r"\$\{[A-Z_]+:\?\}", value), name
    asked = set(re.findall(r"\$\{([A-Z_]+)", text))
    example = (DEPLOYMENTS / "containers" / "environment.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == asked
    for line in example.splitlines():
        if re.match(r"\w*(PASSWORD|SECRET)=", line):
            assert line.endswith("="), line


def test_the_dockerfile_has_no_lint() -> None:
    """hadolint, with nothing ignored."""
    hadolint = Path(sys.executable).with_name("hadolint")
    words = [str(hadolint), str(DEPLOYMENTS / "containers" / "Dockerfile")]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_image_holds_what_it_copies() -> None:
    """Everything the Dockerfile copies is let through by .dockerignore and exists."""
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    dockerfile = (DEPLOYMENTS / "containers" / "Dockerfile").read_text()
    copied = {
        name
        for words in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for name in words.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_parses(script: str) -> None:
    """And can be executed."""
    path = DEPLOYMENTS / script
    shell = "sh" if path.read_text().startswith("#!/bin/sh") else "bash"
    assert subprocess.run([shell, "-n", str(path)], capture_output=True).returncode == 0
    assert path.stat().st_mode & 0o111
