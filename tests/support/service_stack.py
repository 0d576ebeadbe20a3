"""The set-up of `deployments/`, real and small: PostgreSQL, Prefect server, storage, a worker.

Everything listens on loopback, is started by the scripts that are shipped, has a health check with
a time limit, and is stopped in the reverse order.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.background import background
from tests.support.prefect_server import find_free_port
from tests.support.s3_server import S3Server

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = ROOT / "deployments"
USER, PASSWORD = "operator", "testing-only"
AUTH = f"{USER}:{PASSWORD}"
POOL = "eigenshift-tests"
SECONDS_TO_START = "180"
FINAL_STATES = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Stack:
    """A running set-up.

    Attributes:
        api_url: Of the Prefect server.
        store: Root URL of the store the deployments write to.
        environment: Of an operator: may call the server and write to the store.
        folder: Logs are below it.
        storage: The S3 server.
    """

    api_url: str
    store: str
    environment: dict[str, str]
    folder: Path
    storage: S3Server
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=self.api_url,
            auth=(USER, PASSWORD),
            timeout=60,
            limits=httpx.Limits(max_keepalive_connections=0),  # the server closes idle ones
        )

    @property
    def ui_url(self) -> str:
        """Where a browser goes."""
        return self.api_url.removesuffix("/api")

    def run(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a program as the operator, in the repository's root."""
        environment = self.environment | changes
        return subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )

    def ask(self, path: str, document: Any = None, method: str = "POST") -> Any:
        """Call the API; fails on any other answer than success."""
        answer = self.client.request(method, path, json=document)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def find_deployment(self, name: str) -> dict[str, Any]:
        """A deployment by `flow/name`."""
        found: dict[str, Any] = self.ask(f"/deployments/name/{name}", method="GET")
        return found

    def start_run(self, deployment: Mapping[str, Any], settings: Any) -> str:
        """Start a deployment with settings; returns the run's id."""
        found = self.ask(
            f"/deployments/{deployment['id']}/create_flow_run",
            {"parameters": {"settings": settings}, "state": {"type": "SCHEDULED"}},
        )
        return str(found["id"])

    def wait_for_run(self, run_id: str, seconds: float = 420) -> dict[str, Any]:
        """Wait until a run is over; on time-out or failure the logs are in the error."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run: dict[str, Any] = self.ask(f"/flow_runs/{run_id}", method="GET")
            if run["state_type"] in FINAL_STATES:
                return run
            time.sleep(0.5)
        raise AssertionError(f"run {run_id} is not over:\n" + "\n".join(self.read_logs(run_id)))

    def read_logs(self, run_id: str) -> list[str]:
        """The lines of a run's log."""
        found = self.ask(
            "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
        )
        return [entry["message"] for entry in found]

    def read_whole_log(self, run_id: str) -> list[str]:
        """The lines of a finished run, once the last one has arrived; they are sent in batches."""
        wait_until(lambda: any("Finished in state" in line for line in self.read_logs(run_id)))
        return self.read_logs(run_id)

    def list_runs(self, deployment: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All runs of a deployment."""
        found: list[dict[str, Any]] = self.ask(
            "/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}
        )
        return found

    def list_artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """What a run shows, by key."""
        found = self.ask(
            "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
        )
        return {artifact["key"]: artifact for artifact in found}


def wait_until(is_so: Callable[[], Any], seconds: float = 120) -> Any:
    """Ask until the answer is true; returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = is_so()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"not so after {seconds:.0f} s")


@contextmanager
def service_stack(folder: Path, storage: S3Server) -> Iterator[Stack]:
    """Start everything and deploy; stop everything at the end."""
    bucket = "eigenshift"
    storage.make_bucket(bucket)
    port = find_free_port()
    stack = Stack(
        api_url=f"http://127.0.0.1:{port}/api",
        store=f"s3://{bucket}/store",
        environment=_make_environment(folder, port) | storage.environment,
        folder=folder,
        storage=storage,
    )
    stack.environment["EIGENSHIFT_STORE"] = stack.store
    with _postgres() as database:
        server = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "EIGENSHIFT_SERVER_PORT": str(port),
        }
        with background(
            [str(DEPLOYMENTS / "start_server")],
            folder / "server.log",
            _without(stack.environment, "PREFECT_API_URL") | server,
            ROOT,
        ):
            deployed = stack.run(str(DEPLOYMENTS / "deploy"))
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr + _tail(folder)
            with background(
                [str(DEPLOYMENTS / "start_worker")], folder / "worker.log", stack.environment, ROOT
            ):
                yield stack


@contextmanager
def _postgres() -> Iterator[str]:
    """In a folder that the unprivileged user can reach, unlike pytest's."""
    script = [sys.executable, str(ROOT / ".ci" / "postgres")]
    with tempfile.TemporaryDirectory(prefix="eigenshift-postgres-") as folder:
        words = [*script, "start", folder, str(find_free_port())]
        started = subprocess.run(words, capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        try:
            yield started.stdout.strip()
        finally:
            subprocess.run([*script, "stop", folder], check=True)


def _make_environment(folder: Path, port: int) -> dict[str, str]:
    """Nothing of the test's own Prefect settings, programs of this environment first."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return plain | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": AUTH,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "EIGENSHIFT_POOL": POOL,
        "EIGENSHIFT_WAIT_SECONDS": SECONDS_TO_START,
    }


def _without(environment: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


def _tail(folder: Path) -> str:
    log = folder / "server.log"
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""
