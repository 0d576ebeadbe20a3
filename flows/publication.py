"""What a run shows in Prefect's UI: progress, results, a picture, components, links.

Reads the outcome and artifacts of the run; writes Prefect artifacts. Tokens of components stay out
unless `execution.show_text` asks for them; texts of samples are never shown. What cannot be shown
is logged and left out: the outcome is decided, and a release in force, before anything is shown.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from eigenshift.ledger.runs import RunRecord
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


@contextmanager
def _outcome_stands(what: str) -> Iterator[None]:
    """Log whatever keeps something from being shown, by its type: its message may quote data."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - server, store or chart: none may end a run
        logger.warning(
            "%s: not shown in the UI (%s). The run's outcome stands; `eigenshift report` shows it.",
            what,
            type(error).__name__,
        )


@dataclass
class _Progress:
    n_done: int = 0
    n_known: int = 0
    shown_at: float = 0.0
    artifact_id: Any = None


class StageProgress:
    """One progress artifact per stage; only on a Prefect server that somebody can look at.

    A stage that is over within a second costs one call to the server.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Progress] = {}
        self._is_shown = has_server()

    def begin(self, stage: str, n_shards: int) -> None:
        """Shards of a stage were submitted; a stage may begin again, e.g. with the next arm."""
        found = self._stages.setdefault(stage, _Progress(shown_at=time.monotonic()))
        found.n_known += n_shards

    def advance(self, stage: str) -> None:
        """One more shard is there."""
        found = self._stages[stage]
        found.n_done += 1
        is_last = found.n_done == found.n_known
        if not self._is_shown or not (
            is_last or time.monotonic() - found.shown_at >= SECONDS_BETWEEN_UPDATES
        ):
            return
        found.shown_at = time.monotonic()
        self._is_shown = False  # for good, if this fails: a server that is gone costs time
        with _outcome_stands("progress of the stages"):
            self._show(stage, found)
            self._is_shown = True

    def _show(self, stage: str, found: _Progress) -> None:
        progress = 100.0 * found.n_done / found.n_known
        if found.artifact_id is None:
            found.artifact_id = create_progress_artifact(
                progress=progress,
                key=f"progress-{stage.replace('_', '-')}",
                description=f"Shards finished: {stage.replace('_', ' ')}",
            )
        else:
            update_progress_artifact(found.artifact_id, progress)


@_outcome_stands("the refresh")
def publish_refresh(outcome: RefreshOutcome, settings: RefreshSettings, record: RunRecord) -> None:
    """Show a finished refresh; one held before there was a patch has less to show."""
    create_markdown_artifact(
        key="refresh-outcome", markdown=describe_outcome(outcome), description="Decision and checks"
    )
    artifacts = ArtifactStore(settings.store)
    made = {(use.kind, use.label): use.fingerprint for use in record.artifacts}
    links = {
        "store": ("The store", artifacts.store.root),
        "run-record": ("The run's record", artifacts.store.uri(f"runs/{record.run_id}.json")),
    }
    _publish_components(artifacts, record, shows_text=settings.execution.show_text)
    if (patch := made.get(("patch", outcome.judged))) is not None:
        links["patch"] = ("The patch", artifacts.store.uri(f"artifacts/patch/{patch}"))
    if outcome.evaluations:
        create_table_artifact(
            key="refresh-results",
            table=tabulate_results(outcome.evaluations, outcome.judged),
            description="Every metric before and after, with intervals",
        )
        _publish_pictures("refresh-picture", settings.store, outcome.run_id)
    if outcome.benchmarks:
        _publish_answers("refresh-benchmarks", outcome.benchmarks, outcome.judged)
    for key, (text, link) in links.items():
        create_link_artifact(key=f"link-{key}", link=link, link_text=link, description=text)


@_outcome_stands("the components")
def _publish_components(artifacts: ArtifactStore, record: RunRecord, *, shows_text: bool) -> None:
    found = tabulate_components(artifacts, record, MAX_COMPONENTS, show_text=shows_text)
    if found is not None:
        create_table_artifact(
            key="refresh-components", table=found.rows, description=found.description
        )


@_outcome_stands("the comparison")
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


@_outcome_stands("the benchmark")
def publish_benchmark(outcome: Benchmark) -> None:
    """Show a finished benchmark."""
    _publish_answers("benchmarks", outcome.benchmarks, outcome.judged)


@_outcome_stands("what is left of the patch")
def publish_survival(outcome: Survival) -> None:
    """Show what is left of a patch in other formats."""
    create_table_artifact(
        key="survival",
        table=[dict(zip(survival_tables.COLUMNS, row, strict=True)) for row in outcome.rows],
        description=survival_tables.EXPLANATION,
    )


def _publish_answers(key: str, rows: Sequence[Mapping[str, Any]], arm: str) -> None:
    create_table_artifact(
        key=key,
        table=[dict(zip(COLUMNS, row, strict=True)) for row in tabulate_benchmarks(rows, arm)],
        description=EXPLANATION,
    )


@_outcome_stands("the search")
def publish_tuning(tuning: Tuning) -> None:
    """Show a finished search."""
    create_table_artifact(
        key="trials",
        table=[dict(zip(tuning.columns, row, strict=True)) for row in tuning.rows],
        description=tuning.advice,
    )
    _publish_pictures("trials-picture", tuning.store, tuning.run_id)


@_outcome_stands("the pictures")
def _publish_pictures(key: str, store: str, run_id: str) -> None:
    """Before and after, drawn from the store; left out where no server shows them."""
    if not has_server():
        return
    # They draw, which takes a second to import; most runs that do nothing show nothing.
    from eigenshift.audit import open_audit
    from eigenshift.charts.rendering import render_png
    from eigenshift.reporting.figures import find_arms, find_points, find_toxicity

    with open_audit(store) as session:
        charts = [find(session, run_id) for find in (find_toxicity, find_arms, find_points)]
    pictures = [
        embed_picture(chart.title, render_png(chart)) for chart in charts if chart is not None
    ]
    if pictures:
        create_markdown_artifact(
            key=key,
            markdown="\n".join(pictures),
            description="Toxicity and its cost, before and after",
        )


def embed_picture(title: str, png: bytes) -> str:
    """Markdown with a picture inside; the UI shows those whole, unlike image artifacts."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})\n"
