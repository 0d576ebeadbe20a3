"""Prefect's events of assets: which activations, patches and releases a run made.

An open-source Prefect server keeps them as events, in its event feed and for automations; the views
of assets are Prefect Cloud's. A key stays the same from run to run, so that what is made again is
the same asset: `eigenshift://MODEL/activations`. What was made is in the event's payload.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prefect.assets import Asset
from prefect.context import AssetContext, FlowRunContext
from prefect.states import Completed

from eigenshift.detection.stages import EXTRACT_ACTIVATIONS
from eigenshift.ledger.releases import slugify_model
from eigenshift.ledger.runs import RunRecord
from eigenshift.patches.stages import BUILD_PATCH
from eigenshift.store.artifacts import StageResult
from flows.overlap import has_server
from flows.publication import outcome_stands

SCHEME = "eigenshift://"
STAGES = {EXTRACT_ACTIVATIONS.name: "activations", BUILD_PATCH.name: "patch"}
"""Stages whose artifacts are told, and what they are called in the key."""
MAX_LISTED = 20
"""Artifacts that an event lists; all of them are in the run's record."""


def tell_made(record: RunRecord, root: str, stage: str, made: Sequence[StageResult]) -> None:
    """Tell that a stage made artifacts, if it is one of those that are told.

    Args:
        record: The run's.
        root: The store's root URL.
        stage: Its name.
        made: What it made, without what it found.
    """
    if stage not in STAGES or not made:
        return
    sources = [f"{SCHEME}data/{source['name']}" for source in record.settings["sources"]]
    payload = {
        "run_id": record.run_id,
        "artifacts": [f"{root}/{item.reference.folder}" for item in made[:MAX_LISTED]],
        "n_artifacts": len(made),
        "rows": sum(item.rows for item in made),
    }
    upstream = [*sources, name_asset(record.model_id, "model")]
    _emit(name_asset(record.model_id, STAGES[stage]), upstream, payload)


def tell_released(record: RunRecord) -> None:
    """Tell that a patch is in force."""
    payload = {"run_id": record.run_id, "release": record.release}
    upstream = [name_asset(record.model_id, "patch")]
    _emit(name_asset(record.model_id, "release"), upstream, payload)


def name_asset(model_id: str, what: str) -> str:
    """The key of what belongs to a model."""
    return f"{SCHEME}{slugify_model(model_id)}/{what}"


def _emit(key: str, upstream: Iterable[str], payload: Mapping[str, object]) -> None:
    """Prefect's own context of a task that materialises, for what several tasks made."""
    if FlowRunContext.get() is None or not has_server():
        return
    with outcome_stands("the asset"):
        AssetContext(
            downstream_assets={Asset(key=key)},
            upstream_assets={Asset(key=name) for name in upstream},
            materialized_by="eigenshift",
            materialization_metadata={key: dict(payload)},
        ).emit_events(Completed())
