"""A Prefect server as a process of its own, on a free port, with a database of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

SECONDS_TO_START = 120


def find_free_port() -> int:
    """A port nobody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def find_free_ports(count: int) -> int:
    """The first of several ports in a row that nobody listens on."""
    while True:
        first = find_free_port()
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    listener = stack.enter_context(closing(socket.socket()))
                    listener.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
        return first


@contextmanager
def prefect_server_process(home: Path) -> Iterator[str]:
    """Start a server, give its API URL, and stop it."""
    port = find_free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    environment.pop("PREFECT_API_URL", None)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=home,
        )
        try:
            _wait_until_healthy(f"{url}/health", process, home / "server.log")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - loopback
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(
        f"the Prefect server did not start; the end of its log:\n{log.read_text()[-2000:]}"
    )
