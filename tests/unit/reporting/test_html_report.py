"""The report is one self-contained file, says what the store says, and shows no text unasked."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eigenshift.audit import open_audit
from eigenshift.base import schemas
from eigenshift.base.errors import SettingsError
from eigenshift.evaluation.caveats import show_points
from eigenshift.ledger.runs import finish_run, start_run, write_run
from eigenshift.reporting.html_report import write_html_report
from eigenshift.reporting.outcomes import format_estimate
from eigenshift.store.workspace import Workspace
from tests.support.small_store import SmallStore, build_small_store, make_settings

VOID = {"meta", "link", "br", "img"}


class Reader(HTMLParser):
    """Collects what is visible without a click, what is folded away, and references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shown: list[str] = []
        self.folded: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag and what it would load."""
        self.references += [
            f"{tag} {key}={value}" for key, value in attrs if key in ("src", "href", "srcset")
        ]
        self.ids += [str(value) for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Tags close in the order they opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Sort text by whether a click is needed to see it."""
        (self.folded if "details" in self.open else self.shown).append(data)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def html(small: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of its run."""
    out = tmp_path_factory.mktemp("report") / "sub" / "report.html"
    assert write_html_report(small.url, None, out) == small.run_id
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Reader:
    """The report, parsed; every tag is closed in order."""
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_report_loads_nothing(html: str, page: Reader) -> None:
    """No scripts, no images, no addresses, only links to its own parts: it opens offline."""
    for reference in page.references:
        assert reference.partition("href=#")[2] in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert "@import" not in html
    assert not re.search(r"https?://", html)


def test_skip_link_leads_past_the_header(html: str) -> None:
    """The main part begins after the header and its links."""
    before, main = html.split('<main id="main">')
    assert "</header>" in before
    assert "<header>" not in main
    assert "<nav" not in main
    assert main.lstrip().startswith("<section")


def test_report_has_light_and_dark_and_fits_a_phone(html: str) -> None:
    """Colours follow the reader's system; the width follows the screen."""
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_headline_agrees_with_the_audit_views(small: SmallStore, page: Reader) -> None:
    """Rates and intervals in the report are those SQL gives."""
    with open_audit(small.url) as session:
        rows = session.query(
            "SELECT value, low, high FROM evaluations WHERE slice = 'all' AND metric = "
            "'toxicity_rate' AND arm IN ('base', 'eigenshift', 'random_components', 'base_again')"
        ).to_pylist()
    assert len(rows) == 4
    for row in rows:
        assert format_estimate(row, "percent") in "".join(page.shown)


def test_every_toxicity_figure_says_how_well_its_scorer_does(page: Reader) -> None:
    """Beside the headline and beside the distribution, on labelled texts and functional cases."""
    on_labels = (
        "fake on 40 labelled texts of this run: AUROC 0.950 [0.900, 0.990]; calls 87.5% of the "
        "toxic ones toxic, and 12.5% of the others"
    )
    on_cases = "fake on 40 functional cases: 75.0% [65.0, 80.0] right; worst negation, 25.0%"
    assert page.shown.count(on_labels) == page.shown.count(on_cases) == 2


def test_degeneration_is_shown_before_and_after(small: SmallStore, page: Reader) -> None:
    """As SQL gives it, with the paired difference."""
    assert "Whether continuations are worth reading" in page.shown
    with open_audit(small.url) as session:
        rows = session.query(
            "SELECT value, low, high FROM evaluations WHERE slice = 'all' AND "
            "((arm = 'base' AND metric = 'self_bleu') OR "
            "(arm = 'eigenshift' AND metric = 'self_bleu_difference')) ORDER BY arm"
        ).to_pylist()
    before, difference = rows
    assert format_estimate(before, "percent") in "".join(page.shown)
    assert show_points(difference) in "".join(page.shown)


def test_report_shows_all_sections(page: Reader) -> None:
    """Gate, histogram, slices, layers, components, stages and lineage are there."""
    text = "\n".join(page.shown)
    for part in (
        "toxicity is reduced",
        "toxicity probability of one continuation",
        "What detects toxicity",
        "2 of 32 components are damped",
        "No search of this model is in the store",
        "Shifts of single tokens were not measured",
        "make evaluation",
        "/data/comments.csv",
        "ffffffffffffffff",
        "empty_text 2",
        "c" * 64,
    ):
        assert part in text
    assert "numpy" in "\n".join(page.folded)


def test_no_text_is_shown_without_a_click(page: Reader) -> None:
    """Whole samples are nowhere; tokens and contexts are folded away and escaped."""
    shown, folded = "\n".join(page.shown), "\n".join(page.folded)
    for word in ("kettle", "platform", "On day", "<b>", "harbour"):
        assert word not in shown
    assert "kettle |  <b>" in folded
    assert "most active: a harbour at dusk" in folded
    for word in ("platform", "On day", "kettle number"):
        assert word not in folded


def test_report_of_a_comparison_shows_its_operating_points(
    small: SmallStore, tmp_path: Path
) -> None:
    """Drawn under what it cost, with a title of their own, the numbers behind a click."""
    copy = small.copy_to(tmp_path / "store")
    comparison = copy.add_comparison()
    out = tmp_path / "report.html"
    write_html_report(copy.url, comparison.run_id, out)
    html = out.read_text("utf-8")
    page = Reader()
    page.feed(html[html.index('<section id="cost">') : html.index('<section id="examples">')])
    shown, folded = "\n".join(page.shown), "\n".join(page.folded)
    assert "Operating points: reduction of toxicity" in page.shown
    assert "The largest reduction: within +5% 50.0% (eigenshift); at KL 0.02 20.0%" in shown
    assert "leace@kl0.02" in folded
    assert "leace@kl0.02" not in shown


def test_over_suppressed_tokens_begin_with_words_for_groups(
    small: SmallStore, tmp_path: Path
) -> None:
    """Those at non-toxic positions first; how many of all are shown is said; folded away."""
    copy = small.copy_to(tmp_path / "store")
    record = copy.add_run()
    rows = [
        {
            "positions": positions,
            "rank": rank,
            "token_id": rank,
            "token": f" word{rank}",
            "mean_probability_base": 0.123456,
            "mean_probability_patched": 0.000012345,
            "log_ratio": None,
            "kind": "neutral",
            "is_identity": rank >= 58,
        }
        for positions in ("toxic", "nontoxic")
        for rank in range(60)
    ]
    copy.add_artifact(
        record,
        "token_shifts",
        lambda w: w.write_rows("token_shifts.parquet", rows, schemas.TOKEN_SHIFTS),
    )
    write_html_report(copy.url, record.run_id, tmp_path / "report.html")
    reader = Reader()
    reader.feed((tmp_path / "report.html").read_text())
    folded = [text for text in reader.folded if text.strip()]
    first = folded.index("show 50 of 120 rows (may be offensive)")
    cells = folded[first + 2 + 9 :]  # a caption and the headings
    assert [cells[9 * place : 9 * place + 2] for place in range(5)] == [
        *(["nontoxic", "58"], ["nontoxic", "59"], ["toxic", "58"], ["toxic", "59"]),
        ["nontoxic", "0"],
    ]
    assert cells[4:7] == ["0.123", "1.23e-05", "-"]
    assert " word58" not in "".join(reader.shown)


def test_run_that_failed_early_has_a_report(small: SmallStore, tmp_path: Path) -> None:
    """A failed run is reported with its error and without invented numbers."""
    record = start_run("refresh", make_settings(small.url))
    finish_run(record, "failed", "comments.csv: expected a file, found <none>.")
    write_run(small.artifacts.store, record)
    out = tmp_path / "report.html"
    assert write_html_report(small.url, record.run_id, out) == record.run_id
    text = out.read_text()
    assert "found &lt;none&gt;" in text
    assert "This run was not evaluated" in text


def test_report_says_how_many_linear_layers_a_patch_changes(
    small: SmallStore, tmp_path: Path
) -> None:
    """Where it changes any."""
    copy = small.copy_to(tmp_path / "store")
    record = copy.add_run()

    def write(workspace: Workspace) -> None:
        workspace.facts = {"intervention": "deep", "n_components": 0}
        workspace.facts["ranks"] = {"model.layers.0.fc2": 2, "model.layers.1.fc2": 1}

    copy.add_artifact(record, "patch", write, label="deep")
    write_html_report(copy.url, record.run_id, tmp_path / "report.html")
    reader = Reader()
    reader.feed((tmp_path / "report.html").read_text())
    cells = [text for text in reader.shown if text.strip()]
    place = cells.index("weights after")
    assert cells[place + 1 : place + 6] == ["deep", "deep", "-", "2", "-"]
    assert cells[place + 8 : place + 13] == ["eigenshift", "eigenshift", "2", "-", "0"]


def test_report_shows_the_components_of_the_judged_patch(small: SmallStore, tmp_path: Path) -> None:
    """Of a Fisher patch its own, not another budget's; the singular ones are chosen, not damped."""
    copy = small.copy_to(tmp_path / "store")
    record = copy.add_treated_run("eigenshift_fisher", "fisher_components")
    write_html_report(copy.url, record.run_id, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    text = " ".join(html.split())
    assert "The first 3 of 3 Fisher components of the patch" in text
    assert "The first 2 of 2 chosen components. The intervention <code>eigenshift" in text
    assert "damped components" not in text
    assert "components are damped" not in text
    write_html_report(copy.url, copy.run_id, tmp_path / "report.html")
    text = " ".join((tmp_path / "report.html").read_text().split())
    assert "Fisher components of the patch" not in text
    assert "The first 2 of 2 damped components. " in text


def test_comparison_has_a_report(small: SmallStore, tmp_path: Path) -> None:
    """Runs of other commands are reported as far as they go."""
    record = small.add_run("compare", "finished")
    out = tmp_path / "report.html"
    assert write_html_report(small.url, record.run_id, out) == record.run_id


def test_unknown_run_and_unwritable_place_are_refused(small: SmallStore, tmp_path: Path) -> None:
    """Both are the user's to correct, and leave no file."""
    with pytest.raises(SettingsError, match="expected run"):
        write_html_report(small.url, "nothing", tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="expected to write"):
        write_html_report(small.url, None, tmp_path / "file" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_caveats_are_read_before_the_numbers(small: SmallStore, tmp_path: Path) -> None:
    """What was known before the run, unfolded, above the table."""
    other = small.copy_to(tmp_path / "copy")
    other.record.caveats = ["5 prompts tell nothing"]
    write_run(other.artifacts.store, other.record)
    out = tmp_path / "report.html"
    write_html_report(other.url, other.run_id, out)
    reader = Reader()
    reader.feed(out.read_text(encoding="utf-8"))
    text = "\n".join(reader.shown)
    assert text.index("Mind: 5 prompts tell nothing") < text.index("toxicity rate")
