"""Every chart of a run as inline SVG and as PNG."""

from __future__ import annotations

import re

import pytest

from eigenshift.audit import open_audit
from eigenshift.charts.rendering import render_png, render_svg
from eigenshift.charts.run_charts import Chart
from eigenshift.reporting.figures import draw_run
from tests.support.small_store import build_small_store


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chart]:
    """All charts of a small store's run."""
    small = build_small_store(str(tmp_path_factory.mktemp("store")))
    with open_audit(small.url) as session:
        return {chart.name: chart for chart in draw_run(session, small.run_id)}


def test_svg_is_inline_named_and_takes_its_colours_from_the_page(charts: dict[str, Chart]) -> None:
    """No addresses, no fixed colours, no id twice; the summary is its name."""
    drawn = [render_svg(c, is_narrow=narrow) for c in charts.values() for narrow in (False, True)]
    for svg, chart in zip(drawn[::2], charts.values(), strict=True):
        assert svg.startswith("<svg viewBox=")
        assert svg.endswith("</svg>")
        assert 'role="img"' in svg
        assert f'aria-label="{chart.summary}"' in svg
        assert "var(--ink)" in svg
        assert not re.search(r"https?:|#[0-9a-f]{6}\b|<style|<metadata|xmlns", svg)
    ids = re.findall(r'\bid="([^"]+)"', "".join(drawn))
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', "".join(drawn)):
        assert "".join(reference) in ids


def test_same_chart_is_drawn_the_same_twice(charts: dict[str, Chart]) -> None:
    """No times and no random names in the file."""
    chart = charts["layers-1"]
    assert render_svg(chart, is_narrow=True) == render_svg(chart, is_narrow=True)
    assert render_png(chart) == render_png(chart)
