"""Tasks that read sources and choose prompts."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from prefect.states import State

from eigenshift import datasets, prompts
from eigenshift.artifacts import ArtifactReference, ArtifactStore, StageResult
from eigenshift.settings import IngestionSettings, PromptSettings, SourceSettings
from tasks.stage import report, stage_task


@stage_task
def ingest_source(
    store: str, source: SourceSettings, ingestion: IngestionSettings
) -> State[StageResult]:
    """Read one source into samples and rejected rows."""
    content = ArtifactReference(kind="source", fingerprint=datasets.digest_source(source))
    return report(
        ArtifactStore(store).produce(
            "samples",
            step_version=datasets.STEP_VERSION,
            settings={"source": source, "ingestion": ingestion},
            inputs=[content],
            work=lambda workspace: datasets.ingest_source(source, ingestion, workspace),
        )
    )


@stage_task
def choose_prompts(
    store: str, samples: Sequence[ArtifactReference], settings: PromptSettings
) -> State[StageResult]:
    """Draw selection and evaluation prompts."""
    artifacts = ArtifactStore(store)
    return report(
        artifacts.produce(
            "prompts",
            step_version=prompts.STEP_VERSION,
            settings={"prompts": settings},
            inputs=samples,
            work=lambda workspace: prompts.choose_prompts(
                pa.concat_tables(artifacts.open(item).read_tables("samples-") for item in samples),
                settings,
                workspace,
            ),
        )
    )
