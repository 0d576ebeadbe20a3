"""One running set-up, and a browser at its UI, for all tests of the services."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.flows.conftest import SMALL
from tests.support.s3_server import S3Server
from tests.support.service_stack import AUTH, ROOT, Stack, service_stack

PATIENCE_MS = 120_000
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    # The UI asks an analytics host even where analytics are off; nothing leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
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


@pytest.fixture(scope="session")
def page(stack: Stack) -> Iterator[Page]:
    """A tab of Debian's Chromium.

    Skips where it is not installed; CI sets EIGENSHIFT_REQUIRE_BROWSER and fails instead.
    """
    program = shutil.which("chromium")
    if program is None:
        missing = "Chromium is not installed: .ci/install_browser"
        if os.environ.get("EIGENSHIFT_REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as profile:
        browser = driver.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            headless=True,
            args=list(ARGUMENTS),
            viewport={"width": 1400, "height": 1000},
        )
        browser.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        tab = browser.new_page()
        yield tab
        browser.close()


@pytest.fixture(scope="session")
def signed_in(page: Page, stack: Stack) -> Page:
    """The tab after a wrong and then the right password."""
    page.goto(stack.ui_url)
    password = page.locator("input[type=password]")
    login = page.get_by_role("button", name="Login")
    password.fill("operator:wrong-password")
    login.click()
    expect(page.get_by_text("Invalid credentials").first).to_be_visible()
    password.fill(AUTH)
    login.click()
    expect(page.get_by_role("link", name="Deployments").first).to_be_visible()
    return page
