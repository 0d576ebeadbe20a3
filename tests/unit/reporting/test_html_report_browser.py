"""The reports in a real browser: nothing loaded, no errors, readable, text only on a click."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
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
NAMES = ("run", "pair", "compare")
MAX_BYTES = 1_000_000
CONTRAST = """() => {
  const parse = colour => colour.match(/[0-9.]+/g).map(Number);
  const light = colour => { const [r, g, b] = colour.map(
    c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = element => { for (; element; element = element.parentElement) {
    const found = parse(getComputedStyle(element).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found; }
    return [255, 255, 255]; };
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const ink = parse(element.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(element))].sort((x, y) => y - x);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    found.push({place: element.tagName + '.' + element.className, ratio, isLarge}); }
  return found; }"""
"""WCAG contrast of every text that is shown, from the styles it is shown with."""
CUT = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    if (!svg.checkVisibility()) continue;
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) found.push(text.textContent); } }
  return found; }"""
"""Letters of charts that lie outside them."""
OUTSIDE = """() => [...document.querySelectorAll('main *, header *')].filter(
  e => e.checkVisibility() && !e.closest('svg') && !e.closest('thead') && !e.closest('.hidden')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)"""
"""What reaches beyond the right edge of the screen."""
STOPS = "a[href], summary, [tabindex='0']"
NEXT_STOP = """() => { const e = document.activeElement, style = getComputedStyle(e);
  return [[...document.querySelectorAll("a[href], summary, [tabindex='0']")].indexOf(e),
    style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; }"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store with a refresh and a search."""
    store = build_small_store(str(tmp_path_factory.mktemp("store")))
    store.add_search()
    return store


@pytest.fixture(scope="module")
def pages(small: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of report."""
    folder = tmp_path_factory.mktemp("reports")
    write_html_report(small.url, small.run_id, folder / "run.html")
    write_comparison_report(small.url, small.run_id, small.run_id, folder / "pair.html")
    copy = small.copy_to(folder / "store")
    write_html_report(copy.url, copy.add_comparison().run_id, folder / "compare.html")
    return {name: folder / f"{name}.html" for name in NAMES}


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
    """Every cell of the headline table, as the browser shows it; a row for each arm measured."""
    cells = open_page("run").locator("#numbers table").first.locator("tbody tr")
    shown = [row.locator("td").all_inner_texts() for row in cells.all()]
    table = {}
    with open_audit(small.url) as session:
        for _, metric, unit in HEADLINE:
            rows = session.query(
                f"SELECT arm, value, low, high FROM evaluations WHERE run_id = '{small.run_id}' "
                f"AND slice = 'all' AND metric = '{metric}'"
            ).to_pylist()
            for row in rows:
                table[row["arm"], metric] = format_metric(metric, row, unit)
    expected = [
        [table.get((arm, metric), "-") for _, metric, _ in HEADLINE]
        for arm in ARMS
        if (arm, "toxicity_rate") in table
    ]
    assert [[" ".join(cell.split()) for cell in row] for row in shown] == expected


def test_first_screen_says_what_happened(open_page: Callable[..., Any]) -> None:
    """A sentence, the gate in words beside its lamps, and the picture, without scrolling."""
    page = open_page("run", width=1440)
    told = page.locator(".story").inner_text()
    assert told.startswith("The patch lowers toxic continuations from ")
    assert "Passed: " in page.locator(".gate").inner_text()
    assert page.locator(".gate svg").get_attribute("aria-label").startswith("Gate. Passed")
    for part in (".story", ".gate", "#summary .wide svg"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] < 900
    assert page.locator("#summary .wide svg").bounding_box()["width"] > 900


def test_comparison_opens_with_its_pareto_front(open_page: Callable[..., Any]) -> None:
    """Before any table; the sentence names the best."""
    page = open_page("compare", width=1440)
    assert "eigenshift leaves the fewest toxic continuations" in page.locator(".story").inner_text()
    first = page.locator("main figure, main table").first
    assert first.get_attribute("aria-label") == "Toxicity against fluency"
    rows = page.locator("#numbers table").first.locator("tbody th").all_inner_texts()
    assert rows == ["base", "eigenshift", "leace", "leace@kl0.02"]


def test_every_section_has_something_to_show(open_page: Callable[..., Any]) -> None:
    """Charts are named by what they show, and drawn: each has paths of some size."""
    page = open_page("run")
    charts = page.locator(".wide svg[role=img]")
    assert charts.count() == 8
    for chart in charts.all():
        assert len(chart.get_attribute("aria-label")) > 20
        box = chart.bounding_box()
        assert box["width"] > 500
        assert box["height"] > 100
        assert chart.locator("path, use").count() > 5
    for section in page.locator("main > section").all():
        assert section.locator("figure, table, details, .story").count() > 0


def test_tokens_are_shown_by_a_click_or_a_key(open_page: Callable[..., Any]) -> None:
    """Hidden at first; Enter on what has the focus is enough."""
    page = open_page("run")
    tokens = page.get_by_text("raised:").first
    assert not tokens.is_visible()
    assert "kettle" not in page.locator("body").inner_text()
    page.get_by_text("show tokens of component 1").focus()
    page.keyboard.press("Enter")
    assert tokens.is_visible()
    assert "kettle" in tokens.inner_text()


def test_keyboard_comes_to_the_content_first(open_page: Callable[..., Any]) -> None:
    """The first stop is a link past the header, seen once it has the focus."""
    page = open_page("run")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(
    open_page: Callable[..., Any], name: str, scheme: str
) -> None:
    """WCAG AA for every text as it is shown, folded ones too; dark is dark."""
    page = open_page(name, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(CONTRAST)
    assert len(found) > 50
    assert [item for item in found if item["ratio"] < (3 if item["isLarge"] else 4.5)] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 25, 29)")


@pytest.mark.parametrize("name", NAMES)
def test_everything_has_a_name(open_page: Callable[..., Any], name: str) -> None:
    """Figures, pictures, tables and what scrolls; headings go down step by step."""
    page = open_page(name)
    for what in ("figure", "svg", "nav", "[role=region]", "section > section"):
        for element in page.locator(what).all():
            assert element.get_attribute("aria-label")
    for table in page.locator("table").all():
        assert table.locator("caption").text_content().strip()
        assert table.locator("thead th:not([scope=col])").count() == 0
    levels = [
        int(tag[1])
        for tag in page.evaluate(
            "[...document.querySelectorAll('h1, h2, h3, h4')].map(e => e.tagName)"
        )
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title()


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_reached_by_keyboard(open_page: Callable[..., Any], name: str) -> None:
    """Every link, fold and scroller is a stop of Tab, in the order of the page, and shows it."""
    page = open_page(name)
    n_stops = page.evaluate(
        f'[...document.querySelectorAll("{STOPS}")].filter(e => e.checkVisibility()).length'
    )
    stops = []
    for _ in range(n_stops):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(NEXT_STOP))
    assert n_stops > 10
    assert [place for place, _ in stops] == sorted({place for place, _ in stops})
    assert -1 not in [place for place, _ in stops]
    assert all(is_seen for _, is_seen in stops)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [PHONE, 1440])
def test_table_of_contents_stays_and_leads_to_every_section(
    open_page: Callable[..., Any], name: str, width: int
) -> None:
    """All sections, in order, none without a place in it; it is seen wherever one is."""
    page = open_page(name, width=width)
    targets = [link.get_attribute("href")[1:] for link in page.locator("nav a").all()]
    sections = page.evaluate("[...document.querySelectorAll('main > section')].map(e => e.id)")
    assert targets == sections
    for target in targets:
        page.locator(f"nav a[href='#{target}']").press("Enter")
        place = page.evaluate(f"document.getElementById('{target}').getBoundingClientRect().top")
        assert -1 <= place < 900
        assert page.locator("nav").bounding_box()["y"] < 900
        assert page.locator("nav").bounding_box()["y"] > -1


def test_reports_are_small(pages: dict[str, Path]) -> None:
    """Under a megabyte, though every chart is drawn twice."""
    for path in pages.values():
        assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_page_fits_a_phone(open_page: Callable[..., Any], name: str) -> None:
    """Nothing leaves the screen at the right; charts are drawn for it, with letters to read."""
    page = open_page(name, width=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert page.evaluate(OUTSIDE) == []
    assert page.locator(".wide svg").first.is_hidden()
    chart = page.locator(".narrow svg").first
    assert chart.is_visible()
    assert chart.bounding_box()["width"] <= PHONE
    letters = chart.locator("text").first
    drawn = chart.evaluate("s => s.getBoundingClientRect().width / s.viewBox.baseVal.width")
    size = letters.evaluate("t => parseFloat(getComputedStyle(t).fontSize)")
    assert drawn * size >= 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [PHONE, 800, 1440])
def test_letters_of_charts_are_not_cut(
    open_page: Callable[..., Any], name: str, width: int
) -> None:
    """Names of axes, of rows, of points, and numbers: all inside their drawing."""
    assert open_page(name, width=width).evaluate(CUT) == []


def test_numbers_stand_in_line(open_page: Callable[..., Any]) -> None:
    """To the right, with figures of one width; words to the left."""
    table = open_page("run").locator("#numbers table").first
    styles = table.evaluate(
        "t => [...t.querySelectorAll('td, tbody th')].map(e => [e.tagName, e.className, "
        "getComputedStyle(e).textAlign, getComputedStyle(e).fontVariantNumeric])"
    )
    for tag, name, place, figures in styles:
        is_number = tag == "TD" and "number" in name
        assert (place, figures) == ("right" if is_number else "left", "tabular-nums")
    assert any(tag == "TD" and "number" in name for tag, name, _, _ in styles)


@pytest.mark.parametrize("name", NAMES)
def test_print_is_on_white_without_what_is_folded(open_page: Callable[..., Any], name: str) -> None:
    """Wide charts, no navigation, dark letters for whoever reads in the dark, no text unasked."""
    page = open_page(name, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav").is_hidden()
    assert page.locator(".wide svg").first.is_visible()
    assert page.locator(".narrow svg").first.is_hidden()
    assert not any(fold.is_visible() for fold in page.locator("summary").all())
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 33, 38)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert "kettle" not in page.locator("body").inner_text()


def test_comparison_shows_both_runs(small: SmallStore, open_page: Callable[..., Any]) -> None:
    """The header names them; the table has the numbers of both."""
    page = open_page("pair")
    assert page.locator("header").inner_text().count(small.run_id) == 2
    row = page.locator("#numbers tbody tr").first
    assert row.locator("th").inner_text() == "base"
    cells = row.locator("td").all_inner_texts()
    assert cells[0] == "toxicity_rate"
    assert cells[1] == cells[2]
