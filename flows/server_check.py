"""Whether the Prefect server answers and lets us in: for `doctor`, and before and in each run.

Prefect tells it by some 150 lines of traceback; here it is one line with the remedy.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import httpx

from eigenshift.base.errors import EigenShiftError, SettingsError
from eigenshift.base.findings import Finding

if TYPE_CHECKING:
    from prefect.client.schemas import FlowRun

NAME = "Prefect server"
SECONDS = 5.0
REMEDY = (
    "Start it (`deployments/start_server`), correct PREFECT_API_URL and PREFECT_API_AUTH_STRING, "
    "or leave both out: each command then starts a server of its own."
)


class ServerError(EigenShiftError):
    """A Prefect server answered when the run began, and does not any more."""


def check_server() -> Finding:
    """Ask the server of PREFECT_API_URL; without one, each command brings its own."""
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        return Finding.fine(NAME, "none named (PREFECT_API_URL); each command starts its own")
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    auth = (user, password) if user else None
    try:
        answer = httpx.post(f"{url}/flows/count", json={}, auth=auth, timeout=SECONDS)
    except httpx.HTTPError as error:
        return Finding.fail(NAME, f"{url}: no answer ({type(error).__name__})", REMEDY)
    if answer.status_code in (401, 403):
        detail = f"{url}: refused (status {answer.status_code})"
        return Finding.fail(NAME, detail, "Set PREFECT_API_AUTH_STRING to USER:PASSWORD.")
    if not answer.is_success:
        detail = f"{url}: status {answer.status_code}"
        return Finding.fail(NAME, detail, "Check PREFECT_API_URL: it ends in /api.")
    return Finding.fine(NAME, f"{url}: answers" + ("" if user else ", without authentication"))


def require_server() -> None:
    """Ask the server that Prefect is set to use, as Prefect itself asks it; none set is fine.

    Raises:
        SettingsError: It does not answer within a few seconds, or not as a Prefect server of this
            version that lets us in.
    """
    # Prefect takes seconds to import: only where a run follows
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    if not PREFECT_API_URL.value():
        return
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": SECONDS}, sync_client=True) as client,
        ):
            client.raise_for_api_version_mismatch()
    except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
        raise SettingsError(
            f"{NAME} {_show_url()}: expected an answer, found {_name_cause(error)}. {REMEDY}"
        ) from error


def tell_stopped(url: str | None, run: FlowRun | None, signal_name: str) -> None:
    """Tell a server that others look at that a flow run is over; without one there is nobody."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
    from prefect.states import Crashed

    if url is None or run is None:
        return
    with (
        temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": SECONDS}, sync_client=True) as client,
    ):
        client.set_flow_run_state(run.id, Crashed(message=f"Stopped by {signal_name}."))


def end_own_server(_signal: str = "") -> None:
    """Kill the server that Prefect started for this command; nobody else has it."""
    module = sys.modules.get("prefect.server.api.server")
    process = None if module is None else module.SubprocessASGIServer().server_process
    if process is not None:
        process.kill()


def explain_server_fault(error: BaseException) -> ServerError | None:
    """Our own error for one by which a run ended because its server was gone; None for others."""
    if isinstance(error, RuntimeError) and "ephemeral Prefect API server" in str(error):
        return ServerError(
            f"{NAME} of this command: expected it to start, found that it did not in time. Start "
            "the same command again; if that does not help, raise "
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or name a server by PREFECT_API_URL."
        )
    if type(error).__name__ == "Pause" and type(error).__module__ == "prefect.exceptions":
        return ServerError(
            f"{NAME} {_show_url()}: expected the run to go on, found that it was suspended there. "
            "Finished work is in the store: start the same command again to go on."
        )
    if not _asked_server(error):
        return None
    return ServerError(
        f"{NAME} {_show_url() or 'of this command'}: expected an answer, found "
        f"{_name_cause(error)}. It was there when the run began. Finished work is in the store: "
        "when the server answers again, start the same command once more."
    )


def _asked_server(error: BaseException) -> bool:
    """Whether an error comes from a request to the server; the hub and storage use httpx, too."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("Failed to reach API")
    if not isinstance(error, httpx.HTTPError):
        return False
    try:
        url = error.request.url
    except RuntimeError:  # it carries none
        return False
    named = _show_url()
    if not named:
        return url.host == "127.0.0.1" and url.path.startswith("/api/")
    return str(url).startswith(named.rstrip("/"))


def _name_cause(error: BaseException) -> str:
    """What went wrong, in a few words: never a response, which may quote anything."""
    cause = error.__cause__ or error
    if isinstance(cause, httpx.HTTPStatusError):
        return f"status {cause.response.status_code}"
    if isinstance(cause, RuntimeError) and "incompatible versions" in str(cause):
        return f"another version ({str(cause).partition(': ')[2].rstrip('.')})"
    return f"none ({type(cause).__name__})"


def _show_url() -> str:
    """The server's URL without a password in it; empty where none is named."""
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value() or ""
    try:
        return str(httpx.URL(url).copy_with(userinfo=b""))
    except httpx.InvalidURL:
        return "(PREFECT_API_URL is no URL)"
