"""What a run shows in Prefect's UI: progress, results, a picture, components, links.

Reads the outcome and artifacts of the run; writes Prefect artifacts. Tokens of components stay out
unless `execution.show_text` asks for them; texts of samples are never shown. What cannot be shown
is logged and left out: the outcome is decided, and a release in force, before anything is shown.
"""

from __future__ import annotations

import base64
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from eigenshift.ledger.runs import RunRecord
from eigenshift.pipeline import STAGES
from eigenshift.reporting import survival_tables
from eigenshift.reporting.benchmark_tables import (
    COLUMNS,
    EXPLANATION,
    Benchmark,
    tabulate_benchmarks,
)
from eigenshift.reporting.component_tables import tabulate_components
from eigenshift.reporting.outcomes import (
    ArmComparison,
    RefreshOutcome,
    Tuning,
    describe_outcome,
    tabulate_results,
)
from eigenshift.reporting.survival_tables import Survival
from eigenshift.settings import RefreshSettings
from eigenshift.store.artifacts import ArtifactStore
from flows.overlap import has_server

logger = logging.getLogger("eigenshift.run")

SECONDS_BETWEEN_UPDATES = 1.0
MAX_COMPONENTS = 64
ORDER = {stage.name: place for place, stage in enumerate(STAGES)}
ENDED_WELL = ("finished", "promoted", "held")


@contextmanager
def outcome_stands(what: str) -> Iterator[None]:
    """Log whatever keeps something from being shown, by its type: its message may quote data."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - server, store or chart: none may end a run
        logger.warning(
            "%s: not shown in the UI (%s). The run's outcome stands; `eigenshift report` shows it.",
            what,
            type(error).__name__,
        )


class RunProgress:
    """One progress artifact a run; only on a Prefect server that somebody can look at.

    It tells how far the run is in the order of the pipeline's stages, of which a run need not have
    all, and what it waits for. A run in which every stage is over within a second costs three calls
    to the server.

    Args:
        command: What is run; the artifact is called after it.
    """

    def __init__(self, command: str) -> None:
        self._key = f"{command}-progress"
        self._counts: dict[str, list[int]] = {}
        self._percent = 0.0
        self._shown_at: float | None = None
        self._artifact_id: UUID | None = None
        self._is_shown = has_server()

    def begin(self, stage: str, n_shards: int) -> None:
        """Shards of a stage were submitted; a stage may begin again, e.g. with the next arm."""
        self._counts.setdefault(stage, [0, 0])[1] += n_shards

    def advance(self, stage: str) -> None:
        """One more shard is there."""
        counts = self._counts[stage]
        counts[0] += 1
        n_done, n_known = counts
        if stage in ORDER:
            reached = 100.0 * (ORDER[stage] + n_done / n_known) / len(ORDER)
            self._percent = max(self._percent, reached)
        self._show(f"{stage.replace('_', ' ')}: {n_done} of {n_known}")

    def finish(self, status: str) -> None:
        """The run is over."""
        if status in ENDED_WELL:
            self._percent = 100.0
        self._show(f"{status}, {len(self._counts)} stages", is_last=True)

    def _show(self, description: str, *, is_last: bool = False) -> None:
        now = time.monotonic()
        is_due = self._shown_at is None or now - self._shown_at >= SECONDS_BETWEEN_UPDATES
        if not self._is_shown or not (is_due or is_last):
            return
        self._shown_at = now
        self._is_shown = False  # for good, if this fails: a server that is gone costs time
        # asked once: at a run's end its server may be gone, and patience would cost minutes
        once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
        with outcome_stands("the run's progress"), once:
            if self._artifact_id is None:
                made = create_progress_artifact(
                    progress=self._percent, key=self._key, description=description
                )
                self._artifact_id = cast(UUID, made)  # a coroutine only in asynchronous flows
            else:
                update_progress_artifact(self._artifact_id, self._percent, description)
            self._is_shown = True


@outcome_stands("the refresh")
def publish_refresh(outcome: RefreshOutcome, settings: RefreshSettings, record: RunRecord) -> None:
    """Show a finished refresh; one held before there was a patch has less to show.

    Few artifacts, since the UI lists a run's in no order: the outcome tells all in short, and leads
    to the others.
    """
    artifacts = ArtifactStore(settings.store)
    shown: dict[str, UUID | None] = {}
    picture = ""
    if outcome.evaluations:
        shown["every metric"] = _create_table(
            key="refresh-results",
            table=tabulate_results(outcome.evaluations, outcome.judged),
            description="Every metric before and after, with intervals",
        )
        picture = _draw_pictures(settings.store, outcome.run_id)
    shows_text = settings.execution.show_text
    shown["components"] = _publish_components(artifacts, record, shows_text=shows_text)
    if outcome.benchmarks:
        shown["benchmarks"] = _publish_answers(
            "refresh-benchmarks", outcome.benchmarks, outcome.judged
        )
    parts = (
        describe_outcome(outcome),
        _link_artifacts(shown),
        picture,
        describe_places(list_places(artifacts, outcome, record), outcome),
    )
    create_markdown_artifact(
        key="refresh-outcome",
        markdown="\n".join(filter(None, parts)),
        description="Decision, results, checks, picture, and where the files are",
    )


def list_places(
    artifacts: ArtifactStore, outcome: RefreshOutcome, record: RunRecord
) -> dict[str, str]:
    """What a refresh left, by what it is: URLs in the store."""
    store = artifacts.store
    places = {"store": store.root, "record": store.uri(f"runs/{record.run_id}.json")}
    made = {(use.kind, use.label): use.fingerprint for use in record.artifacts}
    if (patch := made.get(("patch", outcome.judged))) is not None:
        places["patch"] = store.uri(f"artifacts/patch/{patch}")
    return places


def describe_places(places: Mapping[str, str], outcome: RefreshOutcome) -> str:
    """Markdown with the places of files, and what to type to read them.

    They are no links: a browser opens neither `file://` nor `s3://`.
    """
    store = shlex.quote(outcome.store.removeprefix("file://"))
    run = f"--store {store} --run {outcome.run_id}"
    lines = (
        *(f"{what:<8}{url}" for what, url in places.items()),
        "",
        f"eigenshift report {run} --out report.html",
        f"eigenshift audit --store {store}",
        f"eigenshift export {run} --format merged --out patched-model",
    )
    return "\n".join(["## Files", "", "```", *lines, "```", ""])


def _link_artifacts(shown: Mapping[str, UUID | None]) -> str:
    """A line that leads to other artifacts of the run, by whatever name the UI was reached."""
    links = [f"[{text}](../artifact/{found})" for text, found in shown.items() if found is not None]
    return f"\nMore of this run: {', '.join(links)}.\n" if links else ""


def _create_table(*, key: str, table: list[dict[str, Any]], description: str) -> UUID:
    return cast(UUID, create_table_artifact(key=key, table=table, description=description))


def _publish_components(
    artifacts: ArtifactStore, record: RunRecord, *, shows_text: bool
) -> UUID | None:
    shown = None
    with outcome_stands("the components"):
        found = tabulate_components(artifacts, record, MAX_COMPONENTS, show_text=shows_text)
        if found is not None:
            shown = _create_table(
                key="refresh-components", table=found.rows, description=found.description
            )
    return shown


@outcome_stands("the comparison")
def publish_comparison(comparison: ArmComparison) -> None:
    """Show a finished comparison."""
    create_table_artifact(
        key="arm-comparison",
        table=[dict(zip(comparison.columns, row, strict=True)) for row in comparison.rows],
        description="All arms on the same prompts, seeds and texts. " + comparison.notes[0],
    )
    create_table_artifact(
        key="arm-degeneration",
        table=[
            dict(zip(comparison.degeneration_columns, row, strict=True))
            for row in comparison.degeneration_rows
        ],
        description="Whether continuations are worth reading: less is better.",
    )
    _publish_pictures("arm-picture", comparison.store, comparison.run_id)


@outcome_stands("the benchmark")
def publish_benchmark(outcome: Benchmark) -> None:
    """Show a finished benchmark."""
    _publish_answers("benchmarks", outcome.benchmarks, outcome.judged)


@outcome_stands("what is left of the patch")
def publish_survival(outcome: Survival) -> None:
    """Show what is left of a patch in other formats."""
    create_table_artifact(
        key="survival",
        table=[dict(zip(survival_tables.COLUMNS, row, strict=True)) for row in outcome.rows],
        description=survival_tables.EXPLANATION,
    )


def _publish_answers(key: str, rows: Sequence[Mapping[str, Any]], arm: str) -> UUID:
    return _create_table(
        key=key,
        table=[dict(zip(COLUMNS, row, strict=True)) for row in tabulate_benchmarks(rows, arm)],
        description=EXPLANATION,
    )


@outcome_stands("the search")
def publish_tuning(tuning: Tuning) -> None:
    """Show a finished search."""
    create_table_artifact(
        key="trials",
        table=[dict(zip(tuning.columns, row, strict=True)) for row in tuning.rows],
        description=tuning.advice,
    )
    _publish_pictures("trials-picture", tuning.store, tuning.run_id)


def _publish_pictures(key: str, store: str, run_id: str) -> None:
    """As an artifact of their own."""
    pictures = _draw_pictures(store, run_id)
    if pictures:
        create_markdown_artifact(
            key=key, markdown=pictures, description="Toxicity and its cost, before and after"
        )


def _draw_pictures(store: str, run_id: str) -> str:
    """Before and after, drawn from the store; empty where no server shows them."""
    if not has_server():
        return ""
    # They draw, which takes a second to import; most runs that do nothing show nothing.
    from eigenshift.audit import open_audit
    from eigenshift.charts.rendering import render_png
    from eigenshift.reporting.figures import find_arms, find_points, find_toxicity

    pictures = ""
    with outcome_stands("the pictures"):
        with open_audit(store) as session:
            charts = [find(session, run_id) for find in (find_toxicity, find_arms, find_points)]
        pictures = "\n".join(
            embed_picture(chart.title, render_png(chart)) for chart in charts if chart is not None
        )
    return pictures


def embed_picture(title: str, png: bytes) -> str:
    """Markdown with a picture inside; the UI shows those whole, unlike image artifacts."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})\n"
