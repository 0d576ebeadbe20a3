"""What a run is called on Prefect's screens, and its tags: the model, the data, how it ended.

Names are made of the flow's parameters when it starts, tags are put on the run at its start and its
end. Both hold names of the settings only, never text of a sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from eigenshift.ledger.runs import RunRecord
from eigenshift.settings import RefreshSettings, Role
from flows.overlap import has_server
from flows.publication import outcome_stands

MAX_DATA_SETS = 3
"""Named in a run's name; further ones are counted."""
STATUS = "status:"


def name_run() -> str:
    """Of a flow with the parameter `settings`; see `compose_run_name`."""
    settings: RefreshSettings = flow_run.parameters["settings"]
    return compose_run_name(settings)


def compose_run_name(settings: RefreshSettings) -> str:
    """Name of the flow run that begins: `demo on jigsaw, toxicn, 28 Nov 05:12:33`."""
    data = [source.name for source in settings.sources_for(Role.labelled)]
    # when it was to start, which is the same at each attempt
    start: datetime = flow_run.scheduled_start_time
    return compose_name(show_model(settings.model.model_id), data, start.astimezone(timezone.utc))


def show_model(model_id: str) -> str:
    """A name or an id of a hub as it is; of a folder or URL its last part."""
    is_place = model_id.startswith(("/", ".", "~")) or "://" in model_id
    return PurePosixPath(model_id).name if is_place else model_id


def compose_name(model: str, data: Iterable[str], start: datetime) -> str:
    """A run's name.

    Args:
        model: Its name, or the id of a hub.
        data: Names of the labelled data sets.
        start: Shown in UTC, to the second.
    """
    names = list(data)
    shown = ", ".join(names[:MAX_DATA_SETS])
    if len(names) > MAX_DATA_SETS:
        shown += f" and {len(names) - MAX_DATA_SETS} more"
    about = f"{model} on {shown}" if shown else model
    return f"{about}, {start.day} {start:%b %H:%M:%S}"


def tag_run(record: RunRecord) -> None:
    """Tag the flow run that keeps a record; only on a server that somebody can look at.

    Its other tags stay; the tag of a former attempt's end is replaced.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not has_server():
        return
    with (
        outcome_stands("the run's tags"),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True) as client,
    ):
        found = client.read_flow_run(context.flow_run.id).tags
        kept = [tag for tag in found if not tag.startswith(STATUS)]
        client.update_flow_run(
            context.flow_run.id, tags=list(dict.fromkeys([*kept, *list_tags(record)]))
        )


def list_tags(record: RunRecord) -> list[str]:
    """Tags that a run has by its record: `model:...`, `data:...`, and at its end `status:...`."""
    sources: list[dict[str, Any]] = record.settings["sources"]
    tags = [
        f"model:{show_model(record.model_id)}",
        *(f"data:{source['name']}" for source in sources),
    ]
    return tags if record.finished_at is None else [*tags, f"{STATUS}{record.status}"]
