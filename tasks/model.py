"""Tasks about the model as a whole: which one it is, and its head's decomposition."""

from __future__ import annotations

from prefect.states import State

from eigenshift import activations, decomposition, model_files, models
from eigenshift.artifacts import ArtifactStore, StageResult, Workspace
from eigenshift.manifests import ArtifactReference
from eigenshift.settings import ComponentSettings, ExecutionSettings, ModelSettings
from tasks.stage import model_task, report

IDENTITY_STEP_VERSION = 4


@model_task
def identify_model(
    store: str, model_settings: ModelSettings, execution: ExecutionSettings
) -> State[StageResult]:
    """Digest the model's files and describe it; every stage that runs it depends on this."""
    identity = model_files.identify_model(model_settings)

    def work(workspace: Workspace) -> None:
        with models.use_text_model(model_settings, execution.device) as text_model:
            description = models.describe_model(text_model, identity)
            description["sites"] = activations.name_sites(text_model)
        workspace.write_json("model.json", description)
        workspace.facts = description

    return report(
        ArtifactStore(store).produce(
            "model",
            step_version=IDENTITY_STEP_VERSION,
            settings={"dtype": model_settings.dtype},
            inputs=[ArtifactReference(kind="weights", fingerprint=identity.digest)],
            work=work,
        )
    )


@model_task
def decompose_head(
    store: str,
    model: ArtifactReference,
    model_settings: ModelSettings,
    settings: ComponentSettings,
    execution: ExecutionSettings,
) -> State[StageResult]:
    """Singular values and right singular vectors of the output head."""
    artifacts = ArtifactStore(store)
    n_leading = settings.n_decomposed
    return report(
        artifacts.produce(
            "decomposition",
            step_version=decomposition.STEP_VERSION,
            settings={
                "dtype": model_settings.dtype,
                "n_decomposed": n_leading,
                "seed": None if n_leading is None else settings.seed,
            },
            inputs=[model],
            work=lambda workspace: decomposition.write_decomposition(
                model_settings,
                artifacts.open(model).manifest.facts["head"],
                device=execution.device,
                n_leading=n_leading,
                seed=settings.seed,
                workspace=workspace,
            ),
        )
    )
