"""Two runs side by side: numbers of both, and what differs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eigenshift.audit import open_audit
from eigenshift.base.errors import SettingsError
from eigenshift.ledger.runs import RunRecord, finish_run, read_run, start_run, write_run
from eigenshift.reporting.comparison_report import gather_comparison, write_comparison_report
from eigenshift.reporting.outcomes import format_estimate
from tests.support.small_store import SmallStore, build_small_store, make_settings


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store with a second run: same artifacts, another setting, a failed check."""
    store = build_small_store(str(tmp_path_factory.mktemp("store")))
    record = store.add_run("refresh", "held")
    record.settings["evaluation"] = record.settings["evaluation"] | {"n_bootstrap": 200}
    record.checks = [dict(store.record.checks[0]) | {"is_passed": False, "found": "nothing"}]
    write_run(store.artifacts.store, record)
    return store


def find_second(small: SmallStore) -> RunRecord:
    """The second run."""
    with open_audit(small.url) as session:
        rows = session.query("SELECT run_id FROM runs WHERE status = 'held'").to_pylist()
    return read_run(small.artifacts.store, rows[0]["run_id"])


def test_page_shows_both_runs_and_what_changed(small: SmallStore, tmp_path: Path) -> None:
    """Numbers of both with their intervals, a difference of zero, the changed setting."""
    out, second = tmp_path / "report.html", find_second(small)
    ids = write_comparison_report(small.url, second.run_id, small.run_id, out)
    assert ids == (second.run_id, small.run_id)
    html = out.read_text("utf-8")
    rate = format_estimate(small.record.metrics["toxicity_rate_patched"], "percent")
    assert re.sub(r"<[^>]+>", "", html).count(rate) >= 2
    assert "+0.0 points" in html
    assert "Both runs judged the same prompts" in html
    assert "$.evaluation.n_bootstrap" in html
    assert "failed: nothing" in html
    assert "2 in both, 0 only in A, 0 only in B" in html
    assert "in B (23)" in html
    assert html.index("</header>") < html.index('<main id="main">')
    assert not re.search(r"https?://|<script|kettle|platform", html)


def test_other_draws_are_not_called_the_same(small: SmallStore, tmp_path: Path) -> None:
    """Same prompts drawn in another number: the page says that the runs drew in different ways."""
    copy = small.copy_to(tmp_path / "store")
    record = copy.add_run()
    record.settings["generation"] = record.settings["generation"] | {"n_samples": 99}
    write_run(copy.artifacts.store, record)
    write_comparison_report(copy.url, record.run_id, copy.run_id, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "or drew in different ways" in html
    assert "$.generation.n_samples" in html


def test_run_that_failed_early_is_compared_as_far_as_it_goes(
    small: SmallStore, tmp_path: Path
) -> None:
    """Each section without data says so in one line."""
    copy = small.copy_to(tmp_path / "store")
    failed = start_run("refresh", make_settings(small.url))
    finish_run(failed, "failed", "gone <away>")
    write_run(copy.artifacts.store, failed)
    out = tmp_path / "report.html"
    write_comparison_report(copy.url, failed.run_id, copy.run_id, out)
    html = out.read_text("utf-8")
    for line in (
        "no metric in common",
        "No scored continuations",
        "0 in both, 0 only in A, 2 only",
    ):
        assert line in html
    assert "gone &lt;away&gt;" in html


def test_difference_is_a_minus_b(small: SmallStore, tmp_path: Path) -> None:
    """By the values of the audit, in points for shares."""
    first, second = read_run(small.artifacts.store, small.run_id), find_second(small)
    with open_audit(small.url) as session:
        found = gather_comparison(session, first, second)
    rows = {(row[0], row[1]): row for row in found["numbers"]}
    assert rows["eigenshift", "perplexity"][4] == "+0.00"
    assert rows["base", "toxicity_rate"][2] == rows["base", "toxicity_rate"][3]
    assert not [row for row in rows if row[0] == "random_components"]


def test_components_are_those_of_the_judged_patches(small: SmallStore, tmp_path: Path) -> None:
    """Singular ones of one run and Fisher ones of the other have none in common."""
    copy = small.copy_to(tmp_path / "store")
    fisher = copy.add_treated_run("eigenshift_fisher", "fisher_components")
    first, out = read_run(copy.artifacts.store, copy.run_id), tmp_path / "report.html"
    with open_audit(copy.url) as session:
        found = gather_comparison(session, first, fisher)["components"]
        same = gather_comparison(session, fisher, fisher)["components"]
    assert found == {"is_fisher": True, "both": 0, "only_after": 3, "only_before": 2}
    assert same == {"is_fisher": True, "both": 3, "only_after": 0, "only_before": 0}
    write_comparison_report(copy.url, fisher.run_id, copy.run_id, out)
    assert "0 in both, 3 only in A, 2 only in B" in out.read_text("utf-8")


def test_unknown_runs_are_refused(small: SmallStore, tmp_path: Path) -> None:
    """Both sides, and nothing is written."""
    for run, against in (("x", small.run_id), (small.run_id, "x")):
        with pytest.raises(SettingsError, match="expected run 'x'"):
            write_comparison_report(small.url, run, against, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
