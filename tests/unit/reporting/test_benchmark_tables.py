"""Tables of benchmark questions: before, after, how many answers changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from eigenshift.base.arms import PATCHED_ARM
from eigenshift.reporting.benchmark_tables import COLUMNS, Benchmark, tabulate_benchmarks
from eigenshift.reporting.html_report import write_html_report
from eigenshift.reporting.outcomes import format_difference, tabulate_headline
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture
def small(tmp_path: Path) -> SmallStore:
    """A store with a refresh."""
    return build_small_store(str(tmp_path / "store"))


def read_rows(small: SmallStore) -> list[dict[str, Any]]:
    """The results in the store."""
    artifact = small.artifacts.open(small.references["benchmarks"])
    return artifact.read_table("benchmarks.parquet").to_pylist()


def test_each_task_has_a_row_and_all_together_the_last(small: SmallStore) -> None:
    """Shares, the paired difference, and questions that only one model got right."""
    small.add_benchmark()
    rows = tabulate_benchmarks(read_rows(small), PATCHED_ARM)
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert [row["task"] for row in found] == ["sums", "places", "all"]
    places, both = found[1:]
    assert places["before"].startswith("50.0% [")
    assert (places["better"], places["worse"], places["questions"]) == ("1", "1", "4")
    assert both["before"].startswith("75.0% [")
    assert both["after"].startswith("62.5% [")
    assert both["difference"].startswith("-12.5% [")
    assert (both["better"], both["worse"], both["questions"]) == ("1", "2", "8")


def test_one_task_alone_is_not_told_twice(small: SmallStore) -> None:
    """All tasks together are that one."""
    small.add_benchmark()
    rows = [row for row in read_rows(small) if row["task"] != "places"]
    assert [row[0] for row in tabulate_benchmarks(rows, PATCHED_ARM)] == ["sums"]
    assert tabulate_benchmarks(rows, "no such arm") == []


def test_the_headline_has_questions_only_where_they_were_put(small: SmallStore) -> None:
    """The controls answer none in a refresh."""
    small.add_benchmark()
    row = tabulate_headline([], PATCHED_ARM, read_rows(small))[-1]
    assert [cell.partition(" ")[0] for cell in row[1:]] == ["75.0%", "62.5%", "-", "-", "-"]
    assert row[0] == "questions right"
    assert "questions right" not in [row[0] for row in tabulate_headline([], PATCHED_ARM)]
    assert format_difference(None) == "-"


def test_the_outcome_of_a_benchmark_is_json(small: SmallStore) -> None:
    """Which run it is about, and every number."""
    record = small.add_benchmark()
    rows = read_rows(small)
    outcome = Benchmark(
        run_id=record.run_id,
        store=small.url,
        about=small.run_id,
        judged=PATCHED_ARM,
        stages=[],
        benchmarks=rows,
    )
    contract = outcome.as_contract()
    assert (contract["status"], contract["about"]) == ("finished", small.run_id)
    assert contract["benchmarks"] == rows
    assert outcome.rows == tabulate_benchmarks(rows, PATCHED_ARM)


@pytest.mark.parametrize("is_later", [False, True], ids=["in the run", "later"])
def test_the_report_tells_what_it_cost_in_capability(
    small: SmallStore, tmp_path: Path, is_later: bool
) -> None:
    """Also where the questions were put afterwards, by a run that it names."""
    out = tmp_path / "report.html"
    write_html_report(small.url, small.run_id, out)
    assert "No benchmark questions were put to it" in out.read_text(encoding="utf-8")
    benchmark = small.add_benchmark(None if is_later else small.record)
    write_html_report(small.url, small.run_id, out)
    html = out.read_text(encoding="utf-8")
    section = html.partition('id="capability"')[2].partition("</section>")[0]
    section = re.sub(r"<[^>]+>", "", section)
    assert "-12.5% [" in section
    assert ("Measured later" in section) is is_later
    assert (benchmark.run_id in section) is is_later
