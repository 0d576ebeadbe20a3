"""The reports in a real browser: nothing loaded, no errors, readable, text only on a click."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eigenshift.audit import open_audit
from eigenshift.reporting.comparison_report import write_comparison_report
from eigenshift.reporting.html_report import write_html_report
from eigenshift.reporting.outcomes import HEADLINE, format_metric
from tests.support.small_store import SmallStore, build_small_store

PHONE, DESK = 390, 1000
ARMS = ("base", "eigenshift", "random_components", "token_suppression", "base_again")
CONTRAST = """() => {
  const probe = document.createElement('span'); document.body.append(probe);
  const light = name => { probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number).map(
      c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const found = {};
  for (const paper of ['paper', 'band'])
    for (const ink of ['ink', 'soft', 'good', 'bad', 'after', 'before']) {
      const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
      found[`${ink} on ${paper}`] = (a + 0.05) / (b + 0.05); }
  probe.remove(); return found; }"""
"""WCAG contrast of every colour that text has, on both grounds."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store with a refresh and a search."""
    store = build_small_store(str(tmp_path_factory.mktemp("store")))
    store.add_search()
    return store


@pytest.fixture(scope="module")
def pages(small: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds of report."""
    folder = tmp_path_factory.mktemp("reports")
    write_html_report(small.url, small.run_id, folder / "run.html")
    write_comparison_report(small.url, small.run_id, small.run_id, folder / "pair.html")
    return {"run": folder / "run.html", "pair": folder / "pair.html"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("EIGENSHIFT_REQUIRE_BROWSER"):
            pytest.fail("EIGENSHIFT_REQUIRE_BROWSER is set and there is no chromium")
        pytest.skip("no chromium here: .ci/install_browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Open a report; at the end, nothing may have been complained about or loaded."""
    contexts, complaints, requests = [], [], []

    def open_page(name: str, scheme: str = "light", width: int = DESK) -> Any:
        context = chromium.new_context(
            color_scheme=scheme, viewport={"width": width, "height": 900}
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert set(requests) <= {path.as_uri() for path in pages.values()}


def test_key_numbers_are_those_of_the_audit(
    small: SmallStore, open_page: Callable[..., Any]
) -> None:
    """Every cell of the headline table, as the browser shows it."""
    cells = open_page("run").locator("#headline table").first.locator("tbody tr")
    shown = [row.locator("td").all_inner_texts() for row in cells.all()]
    expected = []
    with open_audit(small.url) as session:
        for label, metric, unit in HEADLINE:
            rows = session.query(
                f"SELECT arm, value, low, high FROM evaluations WHERE run_id = '{small.run_id}' "
                f"AND slice = 'all' AND metric = '{metric}'"
            ).to_pylist()
            by_arm = {row["arm"]: row for row in rows}
            estimates = [format_metric(metric, by_arm.get(arm), unit) for arm in ARMS]
            expected.append([label, *estimates])
    assert shown == expected


def test_every_section_has_a_chart_or_says_why_not(open_page: Callable[..., Any]) -> None:
    """Charts are named by what they show, and drawn: each has paths of some size."""
    page = open_page("run")
    charts = page.locator(".wide svg[role=img]")
    assert charts.count() == 6
    for chart in charts.all():
        assert len(chart.get_attribute("aria-label")) > 20
        box = chart.bounding_box()
        assert box["width"] > 500
        assert box["height"] > 100
        assert chart.locator("path, use").count() > 5
    links = page.locator("nav a").all()
    assert len(links) == 12
    for link in links:
        assert page.locator(link.get_attribute("href")).locator("h2").count() == 1
    for section in page.locator("section").all():
        content = section.locator("figure, table, details, p")
        assert content.count() > 0


def test_tokens_are_shown_by_a_click_or_a_key(open_page: Callable[..., Any]) -> None:
    """Hidden at first; Enter on what has the focus is enough."""
    page = open_page("run")
    tokens = page.get_by_text("raised:").first
    assert not tokens.is_visible()
    assert "kettle" not in page.locator("body").inner_text()
    page.get_by_text("show tokens of 1").focus()
    page.keyboard.press("Enter")
    assert tokens.is_visible()
    assert "kettle" in tokens.inner_text()


def test_keyboard_comes_to_the_content_first(open_page: Callable[..., Any]) -> None:
    """The first stop is a link past the header, seen once it has the focus."""
    page = open_page("run")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0


@pytest.mark.parametrize("name", ["run", "pair"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(
    open_page: Callable[..., Any], name: str, scheme: str
) -> None:
    """At least 4.5 to 1 for every colour that text has, on both grounds; dark is dark."""
    page = open_page(name, scheme)
    low = {pair: ratio for pair, ratio in page.evaluate(CONTRAST).items() if ratio < 4.5}
    assert low == {}
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 25, 29)")


@pytest.mark.parametrize("name", ["run", "pair"])
def test_page_fits_a_phone(open_page: Callable[..., Any], name: str) -> None:
    """No sideways scrolling of the page; charts are drawn for it, with letters of normal size."""
    page = open_page(name, width=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert page.locator(".wide svg").first.is_hidden()
    chart = page.locator(".narrow svg").first
    assert chart.is_visible()
    assert chart.bounding_box()["width"] <= PHONE
    letters = chart.locator("text").first
    drawn = chart.evaluate("s => s.getBoundingClientRect().width / s.viewBox.baseVal.width")
    size = letters.evaluate("t => parseFloat(getComputedStyle(t).fontSize)")
    assert drawn * size >= 10


def test_comparison_shows_both_runs(small: SmallStore, open_page: Callable[..., Any]) -> None:
    """Headings name them; the table has the numbers of both."""
    page = open_page("pair")
    assert small.run_id in page.locator("h2").first.inner_text()
    cells = page.locator("#numbers tbody tr").first.locator("td").all_inner_texts()
    assert cells[:2] == ["base", "toxicity_rate"]
    assert cells[2] == cells[3]
