"""Charts say what the store says, in pictures and in words."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.charts.rendering import render_png
from eigenshift.charts.run_charts import Chart
from eigenshift.reporting.figures import (
    draw_run,
    find_arms,
    find_components,
    find_points,
    render_run_figures,
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
    assert list(charts) == ["overview", "toxicity", "layers-1", "units-1", "components", "cost"]


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


def test_operating_points_are_of_the_comparison_itself(small: SmallStore, tmp_path: Path) -> None:
    """A `compare` has them after its Pareto front; a refresh has none, also after a `compare`."""
    copy = small.copy_to(tmp_path / "store")
    comparison = copy.add_comparison()
    with open_audit(copy.url) as session:
        names = [chart.name for chart in draw_run(session, comparison.run_id)]
        chart = find_points(session, comparison.run_id)
        assert find_points(session, copy.run_id) is None
    assert names[:3] == ["toxicity", "pareto", "pareto-points"]
    assert chart is not None
    assert [row[:3] for row in chart.rows] == [
        ("eigenshift", "within +5%", "50.0% [40.0%, 60.0%]"),
        ("leace", "within +5%", "30.0% [20.0%, 40.0%]"),
        ("leace@kl0.02", "at KL 0.02", "20.0% [10.0%, 30.0%]"),
    ]


def test_components_are_called_damped_only_where_the_judged_patch_damps_them(
    small: SmallStore, charts: dict[str, Chart], tmp_path: Path
) -> None:
    """A Fisher patch leaves the singular components that were chosen as they are."""
    damped = charts["components"]
    assert damped.columns[-1] == "damped"
    assert damped.summary.startswith("2 of 32 components are damped")
    copy = small.copy_to(tmp_path / "store")
    record = copy.add_treated_run("eigenshift_fisher", "fisher_components")
    with open_audit(copy.url) as session:
        chosen = find_components(session, record.run_id)
    assert chosen is not None
    assert chosen.columns[-1] == "chosen"
    assert chosen.summary.startswith("2 of 32 components are chosen")
    assert chosen.summary.endswith("; no patch that was judged damps them.")
    assert render_png(chosen)


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


def test_folder_that_cannot_be_written_is_an_error_of_the_input(
    small: SmallStore, tmp_path: Path
) -> None:
    """With its name."""
    (tmp_path / "file").write_text("a file")
    with pytest.raises(SettingsError, match=r"file/figures: expected to write files"):
        write_run_figures(small.url, small.run_id, tmp_path / "file" / "figures")
