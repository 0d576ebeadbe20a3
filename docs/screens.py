"""Take the pictures of Prefect's pages that the documents show: the form, a run, its artifacts.

    python docs/screens.py                     start a server, refresh the demo once, take them
    python docs/screens.py --at URL --run ID   of a run that is there

Needs Chromium and Playwright (extra `dev`). Writes `docs/images/prefect-*.png`; the demo's words
are made up, and components' tokens are not shown.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MAX_BYTES = 150_000
N_COLOURS = 96
PATIENCE_MS = 120_000
DRAWING_MS = 8_000
MINUTES = 30
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", help="URL of a server's UI")
    parser.add_argument("--run", help="id of a finished flow run of refresh-quick there")
    given = parser.parse_args()
    if given.at:
        take_pictures(given.at, given.run)
        return
    with serving() as url:
        take_pictures(url, refresh(url))


@contextmanager
def serving() -> Iterator[str]:
    """`python -m flows.serve` with a server of its own, in a folder that is removed."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with tempfile.TemporaryDirectory(prefix="eigenshift-screens-") as folder:
        environment = plain | {
            "PREFECT_HOME": folder,
            "EIGENSHIFT_SERVER_PORT": str(port),
            "PYTHONPATH": str(ROOT),
        }
        process = subprocess.Popen([sys.executable, "-m", "flows.serve"], env=environment, cwd=ROOT)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: find_deployment(url) is not None)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def wait_until(is_so: Any) -> None:
    """Ask every second until the answer is true."""
    deadline = time.monotonic() + 60 * MINUTES
    while time.monotonic() < deadline:
        if is_so():
            return
        time.sleep(1)
    sys.exit(f"screens: not so after {MINUTES} minutes")


def find_deployment(url: str) -> str | None:
    """Id of `refresh-quick`; None while it is not there."""
    try:
        found = httpx.get(f"{url}/api/deployments/name/refresh-quick/refresh-quick", timeout=60)
    except httpx.HTTPError:
        return None
    return str(found.json()["id"]) if found.is_success else None


def refresh(url: str) -> str:
    """Run the demo, and return the flow run's id."""
    path = f"{url}/api/deployments/{find_deployment(url)}/create_flow_run"
    with tempfile.TemporaryDirectory(prefix="eigenshift-store-") as store:
        run_id = str(httpx.post(path, json=order(store), timeout=60).json()["id"])
        run = f"{url}/api/flow_runs/{run_id}"
        wait_until(lambda: httpx.get(run, timeout=60).json()["state_type"] in FINAL)
    return run_id


def order(store: str) -> dict[str, Any]:
    """What the form sends."""
    changes = {"settings": "demo", "store": store}
    return {"parameters": {"changes": changes}, "state": {"type": "SCHEDULED"}}


def take_pictures(url: str, run_id: str | None) -> None:
    """All pictures of one server."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("screens: Chromium is not installed: .ci/install_browser")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as profile:
        browser = driver.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            headless=True,
            args=list(ARGUMENTS),
            viewport={"width": 1200, "height": 900},
        )
        browser.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page = browser.new_page()
        picture_form(page, url)
        if run_id is not None:
            picture_run(page, url, run_id)
        browser.close()


def picture_form(page: Page, url: str) -> None:
    """The form of `refresh-quick`."""
    deployment = find_deployment(url)
    page.goto(f"{url}/v2/deployments/deployment/{deployment}")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(page.get_by_text("Budget").first).to_be_visible()
    save(page, "prefect-form")


def picture_run(page: Page, url: str, run_id: str) -> None:
    """The outcome, and the run's page with its artifacts."""
    asked = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    found = httpx.post(f"{url}/api/artifacts/filter", json=asked, timeout=60).json()
    (outcome,) = (item["id"] for item in found if item["key"] == "refresh-outcome")
    page.goto(f"{url}/v2/artifacts/artifact/{outcome}")
    expect(page.get_by_text("toxicity rate").first).to_be_visible()
    save(page, "prefect-outcome")
    page.goto(f"{url}/v2/runs/flow-run/{run_id}?tab=Artifacts")
    expect(page.get_by_text("refresh-outcome").first).to_be_visible()
    page.wait_for_timeout(DRAWING_MS)  # of the graph, which is a canvas
    save(page, "prefect-run")


def save(page: Page, name: str) -> None:
    """The page as it is, as a small PNG."""
    page.wait_for_timeout(2_000)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = IMAGES / f"{name}.png"
    image.quantize(N_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        sys.exit(f"{path}: expected at most {MAX_BYTES} bytes, found {size}")
    print(f"{path.relative_to(ROOT)}: {size} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
