"""Tasks that build patches: gather the evidence an intervention reads, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect.states import State
from pydantic import BaseModel, ConfigDict

from eigenshift import decomposition, interventions, models, neuron_statistics
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.interventions import Evidence, Need, PatchRequest
from eigenshift.manifests import ArtifactReference, FileReference
from eigenshift.settings import ExecutionSettings, ModelSettings
from tasks.stage import model_task, report


class EvidenceReferences(BaseModel):
    """Where each kind of evidence is; what an intervention does not read may be missing."""

    model_config = ConfigDict(frozen=True)
    decomposition: ArtifactReference | None = None
    components: ArtifactReference | None = None
    head_states: ArtifactReference | None = None
    units: tuple[ArtifactReference, ...] = ()
    labelled_texts: tuple[FileReference, ...] = ()
    neutral_texts: tuple[FileReference, ...] = ()

    def list_references(self, need: Need) -> list[ArtifactReference]:
        """The artifacts or files of one kind of evidence."""
        found = getattr(self, need.value)
        return [] if found is None else [found] if isinstance(found, BaseModel) else list(found)


@model_task
def build_patch(
    store: str,
    request: PatchRequest,
    model: ArtifactReference,
    evidence: EvidenceReferences,
    model_settings: ModelSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Build the patch of one intervention."""
    artifacts = ArtifactStore(store)
    needs = sorted(interventions.find_recipe(request.intervention).needs)

    def work(workspace: Workspace) -> None:
        given = {need: _READERS[need](artifacts, evidence.list_references(need)) for need in needs}
        with models.use_model(model_settings, execution.device) as language_model:
            interventions.build_patch(
                request,
                Evidence(language_model, given),
                model_id=model_settings.model_id,
                workspace=workspace,
            )

    return report(
        artifacts.produce(
            "patch",
            step_version=interventions.STEP_VERSION,
            settings={"request": request, "model_id": model_settings.model_id},
            inputs=[model, *(item for need in needs for item in evidence.list_references(need))],
            work=work,
        )
    )


_Reader = Callable[[ArtifactStore, list[Any]], Any]


def _read_artifacts(name: str) -> _Reader:
    return lambda artifacts, references: artifacts.read_shards(references, name)


def _read_decomposition(artifacts: ArtifactStore, references: list[Any]) -> Any:
    return decomposition.open_decomposition(artifacts.open(references[0]))


_READERS: dict[Need, _Reader] = {
    Need.decomposition: _read_decomposition,
    Need.components: _read_artifacts("components.parquet"),
    Need.head_states: _read_artifacts("head_states.parquet"),
    Need.units: _read_artifacts(neuron_statistics.FILE_NAME),
    Need.labelled_texts: ArtifactStore.read_files,
    Need.neutral_texts: ArtifactStore.read_files,
}
