"""What operators rely on: JSON log lines, the doctor's look at the server, the watcher, rates."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.exceptions import Pause
from prefect.settings import PREFECT_API_URL, temporary_settings

from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import StageSummary
from eigenshift.settings import RefreshSettings
from flows import command_line, serve, server_check
from flows.journal import RunJournal
from flows.log_format import make_formatter
from flows.server_check import check_server, explain_server_fault, require_server
from tests.support.small_store import build_small_store


def _format(message: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    record = logging.LogRecord("eigenshift.run", logging.INFO, "", 0, message, arguments, None)
    for name, value in options.items():
        setattr(record, name, value)
    found: dict[str, Any] = json.loads(make_formatter("json").format(record))
    return found


def test_a_json_line_has_the_values_of_the_message() -> None:
    """Numbers are numbers; time, level and logger are there."""
    found = _format("stage %s  rows=%d seconds=%.1f id=%s", "x", 5, 1.5, "a-1")
    assert found["fields"] == {"rows": 5, "seconds": 1.5, "id": "a-1"}
    assert (found["level"], found["logger"]) == ("info", "eigenshift.run")
    assert found["time"].endswith("+00:00")


def test_a_json_line_tells_an_exception_by_its_type_only() -> None:
    """Its message may quote data."""
    error = ValueError("zorbfool")
    found = _format("it failed", exc_info=(ValueError, error, None))
    assert found["exception"] == "ValueError"
    assert "zorbfool" not in json.dumps(found)


def test_an_unknown_log_format_is_refused() -> None:
    """With the names there are."""
    with pytest.raises(SettingsError, match="text or json"):
        make_formatter("xml")


@contextmanager
def _server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "is_fine", "detail"),
    [(200, True, "answers"), (401, False, "PREFECT_API_AUTH_STRING"), (404, False, "status 404")],
)
def test_the_doctor_asks_the_prefect_server(
    monkeypatch: pytest.MonkeyPatch, status: int, is_fine: bool, detail: str
) -> None:
    """It answers, refuses us, or is something else."""
    with _server(status) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        finding = check_server()
    assert finding.is_fine is is_fine
    assert detail in finding.detail + finding.remedy


def test_the_doctor_needs_no_prefect_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """None named is fine; one that does not answer is not."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert check_server().is_fine
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert not check_server().is_fine


RUNS = {
    "refresh": ["--preset", "demo"],
    "compare": ["--preset", "demo"],
    "tune": ["--preset", "demo"],
    "detect": ["--preset", "demo"],
    "benchmark": [],
}
"""Commands that start a run: what is typed after their name."""


@pytest.mark.parametrize("command", RUNS)
def test_a_run_is_told_that_the_server_does_not_answer(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line with the place and the remedy, exit code 2; a password is not repeated."""
    store = tmp_path / "store"
    if command == "benchmark":
        build_small_store(str(store))
    before = sorted(store.rglob("*"))
    with (
        temporary_settings({PREFECT_API_URL: "http://operator:secret@127.0.0.1:9/api"}),
        pytest.raises(SystemExit) as leaving,
    ):
        command_line.main([command, *RUNS[command], "--store", str(store)])
    starting, line = capfd.readouterr().err.splitlines()
    assert "starting Prefect" in starting
    assert leaving.value.code == 2
    assert line.startswith("error: Prefect server http://127.0.0.1:9/api: expected an answer")
    assert "deployments/start_server" in line
    assert "secret" not in line
    assert sorted(store.rglob("*")) == before


def test_serving_is_told_that_the_server_does_not_answer(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`python -m flows.serve` as well."""
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(SystemExit) as leaving,
    ):
        serve.main()
    (line,) = capfd.readouterr().err.splitlines()
    assert leaving.value.code == 2
    assert "deployments/start_server" in line


def test_serving_starts_a_server_of_its_own_on_a_free_port_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another one's is not taken for ours; the remedy is told."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setitem(serve.os.environ, "PREFECT_HOME", str(tmp_path))
    monkeypatch.delitem(serve.sys.modules, "prefect")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        monkeypatch.setenv(serve.PORT_VARIABLE, str(taken.getsockname()[1]))
        with pytest.raises(SettingsError, match="which is not"), serve.server():
            raise AssertionError("not reached")


def test_forms_name_no_folder_of_this_machine() -> None:
    """What lies below the folder where runs work is relative to it; other paths stay."""
    values = {"a": ["/here/x", "/heretic", "s3://b"], "b": {"c": "/here/y/z", "d": 3, "e": None}}
    assert serve.shorten_paths(values, Path("/here")) == {
        "a": ["x", "/heretic", "s3://b"],
        "b": {"c": "y/z", "d": 3, "e": None},
    }


def test_a_server_that_only_listens_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect itself would ask six times, and wait two minutes."""
    monkeypatch.setattr(server_check, "SECONDS", 0.1)
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as mute,
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{mute.getsockname()[1]}/api"}),
        pytest.raises(SettingsError, match=r"found none \(ReadTimeout\)"),
    ):
        require_server()


def test_a_server_that_is_none_of_prefects_is_refused() -> None:
    """It answers, with an error."""
    with (
        _server(404) as url,
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(SettingsError, match="found status 501"),  # it knows no GET
    ):
        require_server()


def test_a_server_that_goes_in_the_middle_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The record and the JSON object as of any failed run, and what to do."""
    request = httpx.Request("POST", "http://127.0.0.1:8123/api/task_runs/")

    def run_refresh(settings: RefreshSettings) -> None:
        with RunJournal("refresh", settings).recording():
            raise httpx.ConnectError("refused", request=request)

    monkeypatch.setattr("flows.refresh.run_refresh", run_refresh)
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(SystemExit) as leaving:
        command_line.main(
            ["refresh", "--preset", "demo", "--store", str(tmp_path / "store"), "--json"]
        )
    printed = capfd.readouterr()
    assert leaving.value.code == 1
    assert json.loads(printed.out.splitlines()[-1])["status"] == "failed"
    assert printed.err.splitlines()[-1].startswith("error: Prefect server of this command")
    assert "Traceback" not in printed.err


def test_the_demo_is_a_refresh_with_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eigenshift demo`, in a clone and from the package; options of a run as elsewhere."""
    seen: list[RefreshSettings] = []

    def run_refresh(settings: RefreshSettings) -> None:
        seen.append(settings)
        raise SettingsError("that is all")

    monkeypatch.setattr("flows.refresh.run_refresh", run_refresh)
    given = ["--store", str(tmp_path), "--set", "generation.n_samples=3"]
    for command in (["demo"], ["refresh", "--preset", "demo"]):
        with temporary_settings({PREFECT_API_URL: None}), pytest.raises(SystemExit):
            command_line.main([*command, *given])
    assert seen[0] == seen[1]
    assert (seen[0].model.name, seen[0].generation.n_samples) == ("demo", 3)


def test_only_requests_to_the_server_are_its_fault() -> None:
    """The hub is asked by the same library."""
    hub = httpx.ConnectError("x", request=httpx.Request("GET", "https://hub.example/api/models"))
    own = httpx.ConnectError("x", request=httpx.Request("GET", "http://prefect:4200/api/flows"))
    late = RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        found = [explain_server_fault(error) for error in (hub, ValueError(), own, late)]
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        assert "was suspended there" in str(explain_server_fault(Pause()))
    assert found[:2] == [None, None]
    assert "http://prefect:4200/api" in str(found[2])
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS" in str(found[3])


def test_rates_are_of_what_was_made() -> None:
    """Nothing made: no rate; no tokens counted: no rate of tokens."""
    idle = StageSummary(name="x", shards=1, shards_cached=1, elapsed_seconds=0.1)
    assert (idle.rows_per_second, idle.tokens_per_second) == (None, None)
    busy = idle.model_copy(update={"rows_made": 30, "work_seconds": 2.0})
    assert (busy.rows_per_second, busy.tokens_per_second) == (15.0, None)
    assert busy.model_copy(update={"tokens_made": 8}).tokens_per_second == 4.0


@pytest.mark.engine
def test_the_watcher_reports_a_change_once(
    prefect_server: None, load_small: Callable[..., RefreshSettings], tmp_path: Path
) -> None:
    """First sight, no change, a grown file: by name of the source."""
    from flows.watch import watch

    settings = load_small()
    content = Path(settings.sources[3].uri).read_text()
    grown = tmp_path / "sentences.csv"
    grown.write_text(content)
    settings = load_small(f"sources.3.uri={grown}", "model.name=watched")
    first = watch(settings)
    assert first.is_first
    assert first.changed == sorted(source.name for source in settings.sources)
    assert watch(settings).changed == []
    grown.write_text(content + content.splitlines()[-1] + "\n")
    again = watch(settings)
    assert (again.is_first, again.changed) == (False, ["neutral"])
