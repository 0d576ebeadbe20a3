"""What a run shows in Prefect's UI: progress, results, a picture, components, links.

Reads the outcome and artifacts of the run; writes Prefect artifacts. Tokens of components stay out
unless `execution.show_text` asks for them; texts of samples are never shown.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from eigenshift.artifacts import ArtifactReference, ArtifactStore
from eigenshift.audit import open_audit
from eigenshift.figures import find_arms, find_toxicity, render_png
from eigenshift.reporting import (
    ArmComparison,
    RefreshOutcome,
    describe_outcome,
    tabulate_components,
    tabulate_results,
)
from eigenshift.settings import RefreshSettings
from flows.overlap import has_server

SECONDS_BETWEEN_UPDATES = 1.0
MAX_COMPONENTS = 64


@dataclass
class _Progress:
    artifact_id: UUID
    n_done: int = 0
    n_known: int = 0
    updated_at: float = 0.0


class StageProgress:
    """One progress artifact per stage; only on a Prefect server that somebody can look at."""

    def __init__(self) -> None:
        self._stages: dict[str, _Progress] = {}
        self._is_shown = has_server()

    def begin(self, stage: str, n_shards: int) -> None:
        """Shards of a stage were submitted; a stage may begin again, e.g. with the next arm."""
        if not self._is_shown or not n_shards:
            return
        if stage not in self._stages:
            artifact_id = create_progress_artifact(
                progress=0.0, key=f"progress-{_slugify(stage)}", description=_describe(stage)
            )
            self._stages[stage] = _Progress(_as_uuid(artifact_id))
        self._stages[stage].n_known += n_shards

    def advance(self, stage: str) -> None:
        """One more shard is there."""
        found = self._stages.get(stage)
        if found is None:
            return
        found.n_done += 1
        now = time.monotonic()
        is_last = found.n_done == found.n_known
        if is_last or now - found.updated_at >= SECONDS_BETWEEN_UPDATES:
            found.updated_at = now
            update_progress_artifact(found.artifact_id, 100.0 * found.n_done / found.n_known)


def publish_refresh(
    outcome: RefreshOutcome,
    settings: RefreshSettings,
    components: ArtifactReference,
    patch: ArtifactReference,
) -> None:
    """Show a finished refresh."""
    create_markdown_artifact(
        key="refresh-outcome", markdown=describe_outcome(outcome), description="Decision and checks"
    )
    create_table_artifact(
        key="refresh-results",
        table=tabulate_results(outcome.evaluations),
        description="Every metric before and after, with intervals",
    )
    _publish_pictures("refresh-picture", settings.store, outcome.run_id)
    artifacts = ArtifactStore(settings.store)
    shows_text = settings.execution.show_text
    create_table_artifact(
        key="refresh-components",
        table=tabulate_components(
            artifacts.open(components).read_table("components.parquet"),
            MAX_COMPONENTS,
            show_text=shows_text,
        ),
        description="Components damped, most toxic first"
        + ("" if shows_text else "; their tokens are hidden (execution.show_text)"),
    )
    _publish_links(artifacts, outcome, patch)


def publish_comparison(comparison: ArmComparison) -> None:
    """Show a finished comparison."""
    create_table_artifact(
        key="arm-comparison",
        table=[dict(zip(comparison.columns, row, strict=True)) for row in comparison.rows],
        description="All arms on the same prompts, seeds and texts",
    )
    _publish_pictures("arm-picture", comparison.store, comparison.run_id)


def _publish_pictures(key: str, store: str, run_id: str) -> None:
    """Before and after, drawn from the store; left out where no server shows them."""
    if not has_server():
        return
    with open_audit(store) as session:
        charts = [find(session, run_id) for find in (find_toxicity, find_arms)]
    pictures = [
        embed_picture(chart.title, render_png(chart)) for chart in charts if chart is not None
    ]
    create_markdown_artifact(
        key=key,
        markdown="\n".join(pictures),
        description="Toxicity and its cost, before and after",
    )


def embed_picture(title: str, png: bytes) -> str:
    """Markdown with a picture inside; the UI shows those whole, unlike image artifacts."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})\n"


def _publish_links(
    artifacts: ArtifactStore, outcome: RefreshOutcome, patch: ArtifactReference
) -> None:
    store = artifacts.store
    links = {
        "store": ("The store", store.root),
        "run-record": ("The run's record", store.uri(f"runs/{outcome.run_id}.json")),
        "patch": ("The patch", store.uri(f"artifacts/{patch.kind}/{patch.fingerprint}")),
    }
    for key, (text, link) in links.items():
        create_link_artifact(key=f"link-{key}", link=link, link_text=link, description=text)


def _slugify(stage: str) -> str:
    return stage.replace("_", "-")


def _describe(stage: str) -> str:
    return f"Shards finished: {stage.replace('_', ' ')}"


def _as_uuid(found: Any) -> UUID:
    assert isinstance(found, UUID)  # noqa: S101 - an awaitable in asynchronous flows only
    return found
