"""Charts say what the store says, in pictures and in words."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from eigenshift.audit import open_audit
from eigenshift.charts import Chart, chart_arms, chart_slices, chart_toxicity, find_front
from eigenshift.errors import SettingsError
from eigenshift.figures import (
    draw_run,
    find_arms,
    render_png,
    render_run_figures,
    render_svg,
    write_run_figures,
)
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def charts(small: SmallStore) -> dict[str, Chart]:
    """All charts of its run."""
    with open_audit(small.url) as session:
        return {chart.name: chart for chart in draw_run(session, small.run_id)}


def test_run_has_a_chart_for_all_it_has_data_for(charts: dict[str, Chart]) -> None:
    """In the order of the report."""
    assert list(charts) == ["toxicity", "layers-1", "units-1", "components", "cost"]


def test_cost_is_work_and_not_the_time_the_run_waited(
    small: SmallStore, charts: dict[str, Chart]
) -> None:
    """Half a second of each stage, though tasks side by side were waited for much less."""
    n_stages = len(small.record.stages)
    assert {row[1] for row in charts["cost"].rows} == {"0.5"}
    assert charts["cost"].summary.startswith(
        f"{0.5 * n_stages:.1f} seconds of work in all; most in"
    )


def test_pareto_front_is_of_the_latest_search_of_the_model(
    small: SmallStore, tmp_path: Path
) -> None:
    """A refresh and the `tune` itself show its trials; after a `compare`, a refresh its arms."""
    copy = small.copy_to(tmp_path / "store")
    search = copy.add_search()
    with open_audit(copy.url) as session:
        charts = [find_arms(session, run_id) for run_id in (copy.run_id, search.run_id)]
    for chart in charts:
        assert chart is not None
        assert (chart.name, len(chart.rows)) == ("pareto", 3)
        assert "2 of 3 trials are on the Pareto front; the best within" in chart.summary
        assert chart.summary.endswith(f"by 50%. Run {search.run_id}.")
        assert render_png(chart)
    comparison = copy.add_run("compare", "finished")
    with open_audit(copy.url) as session:
        chart = find_arms(session, copy.run_id)
    assert chart is not None
    assert comparison.run_id in chart.summary
    assert len(chart.rows) == 4


def test_figures_are_wide_pictures_with_something_on_them(small: SmallStore) -> None:
    """PNG of 1440 pixels, more than one colour."""
    figures = render_run_figures(small.url, small.run_id)
    for data in figures.values():
        picture = Image.open(io.BytesIO(data))
        assert (picture.format, picture.width) == ("PNG", 1440)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    assert set(figures) >= {"toxicity", "components"}


def test_run_without_data_has_no_figures(small: SmallStore) -> None:
    """Nothing is drawn for a run that is not there."""
    assert render_run_figures(small.url, "no'such run") == {}


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


def test_toxicity_in_words() -> None:
    """Shares at and above 0.5 by hand: 1 of 4 before, 1 of 2 after."""
    rows = [
        {"bin": 0, "n_before": 3, "n_after": 1},
        {"bin": 10, "n_before": 1, "n_after": 0},
        {"bin": 19, "n_before": 0, "n_after": 1},
    ]
    chart = chart_toxicity(rows)
    assert chart is not None
    assert chart.summary.startswith("25.0% of 4 continuations before and 50.0% of 2 after")
    assert chart.rows[10] == ("0.50", "0.55", "25.0%", "0.0%")
    assert chart_toxicity([]) is None


def test_pareto_front_by_hand() -> None:
    """An arm that is worse in one number and no better in the other is not on it."""
    points = {"a": (0.0, 0.3), "b": (0.1, 0.2), "c": (0.2, 0.2), "d": (0.3, 0.1)}
    assert find_front(points) == ["a", "b", "d"]
    rows = [
        {"arm": arm, "toxicity_rate": r, "perplexity_change": c} for arm, (c, r) in points.items()
    ]
    chart = chart_arms(
        [*rows, {"arm": "e", "toxicity_rate": None, "perplexity_change": 0.1}], "a", "run"
    )
    assert chart is not None
    assert chart.rows[0] == ("d", "10.0%", "+30.0%", "yes")
    assert "3 of 4 arms" in chart.summary
    assert chart_arms(rows[:2], "a", "run") is None


def test_slices_with_and_without_intervals() -> None:
    """A slice that was not measured after is still shown before."""
    full = {"value": 0.5, "low": 0.4, "high": 0.6}
    rows = [
        {"slice": "language=en", "n": 4, "before": full, "after": {**full, "low": None}},
        {"slice": "language=zh", "n": 2, "before": full, "after": None},
        {"slice": "nothing", "n": 0, "before": None, "after": None},
    ]
    chart = chart_slices(rows)
    assert chart is not None
    assert chart.rows == (
        ("language=en", 4, "50.0% [40.0%, 60.0%]", "50.0%"),
        ("language=zh", 2, "50.0% [40.0%, 60.0%]", "-"),
    )
    assert render_png(chart)


def test_folder_that_cannot_be_written_is_an_error_of_the_input(
    small: SmallStore, tmp_path: Path
) -> None:
    """With its name."""
    (tmp_path / "file").write_text("a file")
    with pytest.raises(SettingsError, match=r"file/figures: expected to write files"):
        write_run_figures(small.url, small.run_id, tmp_path / "file" / "figures")
