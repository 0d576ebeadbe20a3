"""Prefect's UI in a real browser: log in, fill the run form, wait, read what the run shows.

Screenshots go into EIGENSHIFT_SCREENSHOTS, if that names a folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.service_stack import AUTH, Stack

pytestmark = [pytest.mark.services, pytest.mark.slow]

PATIENCE_MS = 120_000
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    # The UI asks an analytics host even where analytics are off; nothing leaves this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
FIELD = "N Samples (Optional)"
N_SAMPLES = 3


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def run_id(signed_in: Page, stack: Stack, small_settings: dict[str, Any]) -> str:
    """A run started from the form with changed settings, and waited for."""
    page = signed_in
    deployment = stack.find_deployment("refresh/refresh-on-demand")
    path = f"/deployments/{deployment['id']}"
    stack.ask(path, {"parameters": {"settings": small_settings}}, "PATCH")
    page.goto(f"{stack.ui_url}/v2/deployments/deployment/{deployment['id']}")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_role("menuitem", name="Custom run").click()
    field = page.get_by_label(FIELD, exact=True)
    expect(field).to_have_value(str(small_settings["generation"]["n_samples"]))
    expect(page.get_by_text("Continuations per prompt.").first).to_be_visible()
    runs = len(stack.list_runs(deployment))
    field.fill("0")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_timeout(1_000)
    _take_picture(page, "form-refused")
    assert len(stack.list_runs(deployment)) == runs
    field.fill(str(N_SAMPLES))
    with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as answer:
        page.get_by_role("button", name="Submit").click()
    assert answer.value.status == 201
    started = str(answer.value.json()["id"])
    page.goto(f"{stack.ui_url}/v2/runs/flow-run/{started}")
    run = stack.wait_for_run(started)
    assert run["state_type"] == "COMPLETED", stack.read_logs(started)
    return started


def test_the_form_starts_a_run_with_the_changed_settings(stack: Stack, run_id: str) -> None:
    """The run's parameters differ from the deployment's in the changed field only."""
    run = stack.ask(f"/flow_runs/{run_id}", method="GET")
    deployment = stack.find_deployment("refresh/refresh-on-demand")
    found, expected = run["parameters"]["settings"], deployment["parameters"]["settings"]
    assert found["generation"]["n_samples"] == N_SAMPLES
    assert found["model"] == expected["model"]
    assert found["prompts"]["n_selection"] == expected["prompts"]["n_selection"]


def test_the_run_page_shows_state_progress_and_artifacts(
    signed_in: Page, stack: Stack, run_id: str
) -> None:
    """The final state by name, and a tab with what the run shows."""
    page = signed_in
    run = stack.ask(f"/flow_runs/{run_id}", method="GET")
    page.goto(f"{stack.ui_url}/v2/runs/flow-run/{run_id}")
    expect(page.get_by_text(run["state_name"], exact=True).first).to_be_visible()
    _take_picture(page, "run")
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_text("progress-extract-activations").first).to_be_visible()
    expect(page.get_by_text("refresh-results").first).to_be_visible()
    _take_picture(page, "run-artifacts")
    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_text("submitted to infrastructure").first).to_be_visible()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("refresh-outcome", "toxicity rate"),
        ("refresh-results", "toxicity_rate"),
        ("refresh-components", "benefit_low"),
        ("link-store", "s3://eigenshift/store"),
        ("progress-extract-activations", "100"),
    ],
)
def test_an_artifact_reads_on_its_page(
    signed_in: Page, stack: Stack, run_id: str, key: str, text: str
) -> None:
    """What the page shows, by its visible text."""
    page = _open_artifact(signed_in, stack, run_id, key)
    expect(page.get_by_text(text).first).to_be_visible()
    _take_picture(page, key)


def test_the_picture_is_drawn(signed_in: Page, stack: Stack, run_id: str) -> None:
    """The browser has decoded the PNG that is inside the page."""
    page = _open_artifact(signed_in, stack, run_id, "refresh-picture")
    picture = page.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    _take_picture(page, "refresh-picture")


def test_tokens_of_components_stay_out_of_the_page(
    signed_in: Page, stack: Stack, run_id: str
) -> None:
    """They may be offensive and were not asked for."""
    page = _open_artifact(signed_in, stack, run_id, "refresh-components")
    expect(page.get_by_text("Fisher components of the patch").first).to_be_visible()
    expect(page.get_by_text("benefit_low").first).to_be_visible()
    expect(page.get_by_text("execution.show_text").first).to_be_visible()
    assert page.get_by_text("tokens_up").count() == 0


def _open_artifact(page: Page, stack: Stack, run_id: str, key: str) -> Page:
    artifact = stack.list_artifacts(run_id)[key]
    page.goto(f"{stack.ui_url}/v2/artifacts/artifact/{artifact['id']}")
    return page


def _take_picture(page: Page, name: str) -> None:
    folder = os.environ.get("EIGENSHIFT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1_000)
        page.screenshot(path=f"{folder}/{name}.png")
