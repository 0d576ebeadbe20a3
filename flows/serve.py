"""Offer the refresh to a Prefect server, with the settings as a typed form in its UI.

Started by `python -m flows.serve`, stopped with Ctrl-C. Beside a running server (PREFECT_API_URL)
it uses that one; without, it starts one of its own on loopback, without questions and telemetry,
which ends with it. The demo's settings prefill the forms. A try-out: what runs for keeps is in
`deployments/`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from eigenshift.base.errors import SettingsError
from flows.options import EXIT_BAD_INPUT
from flows.prefect_environment import create_home
from flows.server_check import require_server

HOST = "127.0.0.1"
PORT_VARIABLE = "EIGENSHIFT_SERVER_PORT"
DEFAULT_PORT = "4200"
SECONDS_TO_START = 180.0
SECONDS_TO_STOP = 20.0


def main() -> None:
    """Serve until interrupted."""
    create_home()
    try:
        with server() as url:
            print(f"Prefect's UI: {url.removesuffix('/api')}   (Ctrl-C ends)", flush=True)  # noqa: T201
            _serve()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        return


@contextmanager
def server() -> Iterator[str]:
    """The server to use, by its API's URL: that of PREFECT_API_URL, or one for this process.

    To be called before Prefect is imported, which reads the variable once.

    Raises:
        SettingsError: It does not answer, or its port is taken.
    """
    if "PREFECT_API_URL" in os.environ or "prefect" in sys.modules:
        require_server()
        yield os.environ.get("PREFECT_API_URL", "")
        return
    port = os.environ.get(PORT_VARIABLE, DEFAULT_PORT)
    _require_free(port)
    url = f"http://{HOST}:{port}/api"
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    print(f"starting a Prefect server, which takes some seconds (its log: {log})", flush=True)  # noqa: T201
    # A session of its own: Ctrl-C is for us, who stop it when the runs here have ended.
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", port],
            env=os.environ | {"PREFECT_UI_API_URL": "/api"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait_for(f"{url}/health", process, log)
        os.environ["PREFECT_API_URL"] = url
        yield url
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        process.terminate()
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()


def _require_free(port: str) -> None:
    try:
        with closing(socket.create_server((HOST, int(port)))):
            return
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(
            f"{PORT_VARIABLE}: expected a port of {HOST} that is free, found {port}, which is not. "
            "Set another, or PREFECT_API_URL to the server that is there."
        ) from error


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=2).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SettingsError(
        f"Prefect server of this command: expected it to answer at {url}, found that it did not. "
        f"Its log is {log}."
    )


def _serve() -> None:
    from prefect import serve

    from eigenshift.settings import load_preset
    from flows.compare import compare
    from flows.detect import detect
    from flows.quick import refresh_quick
    from flows.refresh import refresh
    from flows.tune import tune

    filled = load_preset("demo").model_dump(mode="json", exclude_unset=True)
    settings = shorten_paths(filled, Path.cwd())
    # a coroutine only where an event loop runs already
    deployments: list[Any] = [
        flow.to_deployment(
            name=name,
            parameters=parameters,
            tags=["eigenshift"],
            description=(flow.description or "").partition("\n")[0],
        )
        for flow, name, parameters in (
            (refresh_quick, "refresh-quick", {"changes": {"settings": "demo"}}),
            *(
                (flow, f"{flow.name}-on-demand", {"settings": settings})
                for flow in (refresh, compare, tune, detect)
            ),
        )
    ]
    serve(*deployments)


def shorten_paths(values: Any, folder: Path) -> Any:
    """Plain values in which paths below a folder are relative to it: where runs work, too."""
    if isinstance(values, dict):
        return {name: shorten_paths(value, folder) for name, value in values.items()}
    if isinstance(values, list):
        return [shorten_paths(value, folder) for value in values]
    is_below = isinstance(values, str) and values.startswith(f"{folder}/")
    return values.removeprefix(f"{folder}/") if is_below else values


if __name__ == "__main__":
    main()
