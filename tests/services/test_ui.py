"""Prefect's UI in a real browser: log in, fill the run form, wait, read what the run shows.

Screenshots go into EIGENSHIFT_SCREENSHOTS, if that names a folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.service_stack import Stack

pytestmark = [pytest.mark.services, pytest.mark.slow]

FIELD = "N Samples (Optional)"
N_SAMPLES = 3
PHONE_WIDTH = 400


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
    expect(page.get_by_text("refresh-progress").first).to_be_visible()
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
        ("refresh-outcome", "s3://eigenshift/store"),
        ("refresh-progress", "100"),
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
    page = _open_artifact(signed_in, stack, run_id, "refresh-outcome")
    picture = page.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300


def test_the_outcome_leads_to_the_other_artifacts(
    signed_in: Page, stack: Stack, run_id: str
) -> None:
    """Its links open; nothing leaves the page to the right, on a phone either."""
    page = _open_artifact(signed_in, stack, run_id, "refresh-outcome")
    wide = page.viewport_size
    assert wide is not None
    for width in (wide["width"], PHONE_WIDTH):
        page.set_viewport_size({"width": width, "height": wide["height"]})
        for text in ("Gate", "missed by", "Stages"):
            for found in page.get_by_text(text).locator("visible=true").all():
                box = found.bounding_box()
                assert box is not None
                assert box["x"] + box["width"] <= width
    page.set_viewport_size(wide)
    page.get_by_role("link", name="every metric").click()
    expect(page.get_by_text("toxicity_rate").first).to_be_visible()


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
