"""OpenLineage events of a run, where OpenLineage's own configuration asks for them.

Off unless OPENLINEAGE_URL, OPENLINEAGE_CONFIG or a variable OPENLINEAGE__TRANSPORT... is set, or an
`openlineage.yml` lies where its client looks (pip extra `openlineage`). A run is told at its start
and its end: data sets and model go in, a data set for each kind of artifact and the releases come
out, by the names of OpenLineage's naming rules. Never text, and of errors what the record has.
An event that cannot be sent is logged, and no further one is tried: it ends no run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eigenshift import __version__
from eigenshift.base.locations import split_options
from eigenshift.ledger.releases import slugify_model
from eigenshift.ledger.runs import RunRecord
from eigenshift.pipeline import STAGES

logger = logging.getLogger("eigenshift.run")

PRODUCER = f"https://pypi.org/project/eigenshift/{__version__}/"
NAMESPACE = "eigenshift"
"""Of jobs, where OPENLINEAGE_NAMESPACE names no other."""
HUB = "https://huggingface.co"
VARIABLES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
TRANSPORT = "OPENLINEAGE__TRANSPORT"
FILE = "openlineage.yml"
ENDS = {"failed": "FAIL", "suspended": "ABORT"}
"""Status -> event type of a run that did not complete."""


def is_configured() -> bool:
    """Whether somebody has said where events go."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    named = any(os.environ.get(name) for name in VARIABLES)
    files = (Path(FILE), Path.home() / ".openlineage" / FILE)
    return (
        named
        or any(name.startswith(TRANSPORT) for name in os.environ)
        or any(file.is_file() for file in files)
    )


class RunLineage:
    """Tells of one run.

    Args:
        root: The store's root URL.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._client = _make_client() if is_configured() else None

    def tell(self, record: RunRecord, *, is_stopped: bool = False) -> None:
        """Send the event that a run has begun, or ended if it has.

        Args:
            record: The run's.
            is_stopped: A signal ended it.
        """
        client, self._client = self._client, None  # for good, if this fails
        if client is None:
            return
        try:
            client.emit(describe_run(record, self._root, is_stopped=is_stopped))
            self._client = client
        except Exception as error:  # noqa: BLE001 - a server's answer or a network: no run's fault
            logger.warning("OpenLineage: no events of this run (%s)", type(error).__name__)


def _make_client() -> Any:
    try:
        from openlineage.client import OpenLineageClient
    except ImportError:
        logger.warning(
            "OpenLineage is configured, but its client is not installed; no events. Install it by "
            "`pip install 'eigenshift[openlineage]'`, or set OPENLINEAGE_DISABLED=true."
        )
        return None
    try:
        return OpenLineageClient()
    except Exception as error:  # noqa: BLE001 - whatever its configuration leads to
        logger.warning("OpenLineage: its configuration does not work (%s)", type(error).__name__)
        return None


def describe_run(record: RunRecord, root: str, *, is_stopped: bool = False) -> Any:
    """A run as an OpenLineage `RunEvent`: START, COMPLETE, FAIL or ABORT by the record.

    Args:
        record: The run's.
        root: The store's root URL.
        is_stopped: A signal ended it.
    """
    from openlineage.client import event_v2 as events
    from openlineage.client.facet_v2 import job_type_job
    from openlineage.client.uuid import generate_static_uuid

    events.set_producer(PRODUCER)  # of the facets
    started = datetime.fromisoformat(record.started_at)
    run_id = str(generate_static_uuid(started, record.run_id.encode()))
    is_over = record.finished_at is not None
    end = "ABORT" if is_stopped else ENDS.get(record.status, "COMPLETE")
    job = events.Job(
        namespace=os.environ.get("OPENLINEAGE_NAMESPACE") or NAMESPACE,
        name=f"{record.command}.{slugify_model(record.model_id)}",
        facets={
            "jobType": job_type_job.JobTypeJobFacet(
                processingType="BATCH", integration="EIGENSHIFT", jobType="RUN"
            )
        },
    )
    return events.RunEvent(
        eventType=events.RunState[end if is_over else "START"],
        eventTime=record.finished_at or record.started_at,
        run=events.Run(runId=run_id, facets=_describe_facets(record)),
        job=job,
        producer=PRODUCER,
        inputs=_list_inputs(record),
        outputs=_list_outputs(record, root) if is_over else [],
    )


def _describe_facets(record: RunRecord) -> dict[str, Any]:
    from openlineage.client.constants import __version__ as client_version
    from openlineage.client.facet_v2 import error_message_run, processing_engine_run, tags_run

    tags = {"eigenshift_run_id": record.run_id, "eigenshift_status": record.status}
    facets: dict[str, Any] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version=__version__, name="EigenShift", openlineageAdapterVersion=client_version
        ),
        "tags": tags_run.TagsRunFacet(
            tags=[
                tags_run.TagsRunFacetFields(key=key, value=value, source="EIGENSHIFT")
                for key, value in tags.items()
            ]
        ),
    }
    if record.error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=record.error, programmingLanguage=f"Python {platform.python_version()}"
        )
    return facets


def _list_inputs(record: RunRecord) -> list[Any]:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    model = record.settings["model"]
    places = [
        name_place(source["uri"], kind="datasets" if source["format"] == "huggingface" else "")
        for source in record.settings["sources"]
    ]
    version = record.model_digest or model["revision"]
    facets: dict[str, Any] = {}
    if version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            datasetVersion=version
        )
    named = name_place(model["id"], kind="models")
    return [
        *(InputDataset(namespace=space, name=name) for space, name in dict.fromkeys(places)),
        InputDataset(namespace=named[0], name=named[1], facets=facets),
    ]


def _list_outputs(record: RunRecord, root: str) -> list[Any]:
    """One data set for each kind of artifact, and the model's releases."""
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import (
        dataset_version_dataset,
        output_statistics_output_dataset,
    )

    rows = {stage.name: stage.rows_made for stage in record.stages}
    made: dict[str, int] = defaultdict(int)
    for stage in STAGES:
        made[stage.kind] += rows.get(stage.name, 0)
    versions: dict[str, list[str]] = defaultdict(list)
    for use in record.artifacts:
        if use.fingerprint not in versions[use.kind]:
            versions[use.kind].append(use.fingerprint)
    outputs = []
    for kind, fingerprints in versions.items():
        version = fingerprints[0] if len(fingerprints) == 1 else _digest(fingerprints)
        space, name = name_place(f"{root}/artifacts/{kind}")
        outputs.append(
            OutputDataset(
                namespace=space,
                name=name,
                facets={
                    "version": dataset_version_dataset.DatasetVersionDatasetFacet(
                        datasetVersion=version
                    )
                },
                outputFacets={
                    "outputStatistics": (
                        output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                            rowCount=made[kind]
                        )
                    )
                },
            )
        )
    if record.release is not None:
        space, name = name_place(f"{root}/releases/{slugify_model(record.model_id)}")
        facet = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=record.release)
        outputs.append(OutputDataset(namespace=space, name=name, facets={"version": facet}))
    return outputs


def name_place(url: str, kind: str = "") -> tuple[str, str]:
    """Namespace and name of a data set, by OpenLineage's naming rules.

    Args:
        url: A path or URL, without options; or an id of the hub.
        kind: Where an id that is no path lies on the hub: datasets or models. Empty: it is a path.
    """
    plain, _ = split_options(url)
    parts = urlsplit(plain)
    if parts.scheme == "file" or not parts.netloc:
        path = Path(parts.path if parts.scheme == "file" else plain)
        if kind and not path.is_absolute() and not path.exists():
            return HUB, f"{kind}/{plain}"
        return "file", str(path.absolute())
    return f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/") or "/"


def _digest(fingerprints: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(fingerprints)).encode()).hexdigest()
