"""Whether the Prefect server that commands would use answers and lets us in, for `doctor`."""

from __future__ import annotations

import os

import httpx

from eigenshift.diagnosis import Finding

NAME = "Prefect server"
SECONDS = 5.0


def check_server() -> Finding:
    """Ask the server of PREFECT_API_URL; without one, each command brings its own."""
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        return Finding(NAME, True, "none named (PREFECT_API_URL); each command starts its own")
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    auth = (user, password) if user else None
    try:
        answer = httpx.post(f"{url}/flows/count", json={}, auth=auth, timeout=SECONDS)
    except httpx.HTTPError as error:
        return Finding(NAME, False, f"{url}: no answer ({type(error).__name__}); is it started?")
    if answer.status_code in (401, 403):
        detail = f"{url}: refused (status {answer.status_code}); set PREFECT_API_AUTH_STRING"
        return Finding(NAME, False, detail)
    if not answer.is_success:
        return Finding(NAME, False, f"{url}: status {answer.status_code}; is it a Prefect API?")
    return Finding(NAME, True, f"{url}: answers" + ("" if user else ", without authentication"))
