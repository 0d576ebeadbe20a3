"""One running set-up for all tests of the services."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import SMALL
from tests.support.s3_server import S3Server
from tests.support.service_stack import ROOT, Stack, service_stack

MISSING = "PostgreSQL is not installed: .ci/postgres install"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Stack]:
    """PostgreSQL, Prefect server, storage and worker, with everything deployed.

    Skips where PostgreSQL is not installed; CI sets EIGENSHIFT_REQUIRE_SERVICES and fails instead.
    """
    has_postgres = any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")
    if not has_postgres:
        if os.environ.get("EIGENSHIFT_REQUIRE_SERVICES"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with service_stack(tmp_path_factory.mktemp("services"), s3_server) as found:
        yield found


@pytest.fixture(scope="session")
def small_settings(stack: Stack) -> dict[str, Any]:
    """The demo made small, with the deployments' store."""
    from eigenshift.settings import load_preset

    settings = load_preset("demo", [*SMALL, f"store={stack.store}"])
    found: dict[str, Any] = settings.model_dump(mode="json")
    assert str(ROOT) in found["model"]["id"]
    return found
