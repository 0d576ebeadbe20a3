"""Watch the sources: when a file is added, changed or removed, say so with an event.

Scheduled by `deployments/prefect.yaml`, where a refresh waits for the event. What was seen last is
a Prefect variable, written after the event: if the process dies in between, the next round says it
again, and the refresh it starts finds nothing to do.
"""

from __future__ import annotations

import hashlib
from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.variables import Variable
from pydantic import BaseModel

from eigenshift.datasets.reading import digest_source
from eigenshift.ledger.releases import slugify_model
from eigenshift.settings import RefreshSettings
from flows.credentials import use_credentials
from flows.journal import logger, show_progress
from flows.run_labels import name_run

SOURCES_CHANGED = "eigenshift.sources.changed"
RESOURCE = "eigenshift.model"


class Sighting(BaseModel):
    """What one look found: names of the sources that differ from the last look."""

    is_first: bool
    changed: list[str]


@flow(name="watch", flow_run_name=name_run, result_serializer="json")
def watch(settings: RefreshSettings) -> Sighting:
    """Look at every source and emit `eigenshift.sources.changed` if one differs from last time.

    Args:
        settings: Those of the refresh to start; only sources, model name and credentials are read.
    """
    show_progress()
    use_credentials(settings.execution.credentials_block)
    slug = slugify_model(settings.model.model_id)
    seen = {source.name: digest_source(source)[:16] for source in settings.sources}
    name = f"eigenshift_watch_{hashlib.sha256(slug.encode()).hexdigest()[:12]}"
    last: Any = Variable.get(name, default=None)
    known = last if isinstance(last, dict) else {}
    names = sorted(seen.keys() | known.keys())
    sighting = Sighting(
        is_first=last is None,
        changed=[source for source in names if seen.get(source) != known.get(source)],
    )
    if sighting.changed:
        logger.info("sources changed: %s", ", ".join(sighting.changed))
        emit_event(
            event=SOURCES_CHANGED,
            resource={
                "prefect.resource.id": f"{RESOURCE}.{slug}",
                "prefect.resource.name": settings.model.model_id,
            },
            payload={"sources": sighting.changed},
        )
        Variable.set(name, seen, overwrite=True)
    return sighting
