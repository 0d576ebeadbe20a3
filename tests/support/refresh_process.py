"""A refresh in a process of its own, which finds the tests' Prefect server."""

from __future__ import annotations

from typing import Any

from eigenshift.settings import RefreshSettings
from tests.support.killed_work import prepare


def prepare_refreshes() -> Any:
    """Return a context whose processes have everything a refresh needs imported."""
    return prepare(["torch", "transformers", "detoxify", "s3fs", "flows.refresh", __name__])


def run_refresh_at(api_url: str, settings: RefreshSettings) -> None:
    """What `eigenshift refresh` runs; exit code 5 if it was cancelled by policy."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    from flows.overlap import OverlapError
    from flows.refresh import run_refresh

    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            run_refresh(settings)
        except OverlapError:
            raise SystemExit(5) from None


def find_api_url() -> str:
    """URL of the Prefect server in use."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())
