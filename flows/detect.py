"""Find which units and layers of a model detect toxicity; nothing is generated or changed.

Started by `eigenshift detect` or from the Prefect UI. Reads labelled texts only, and works on
encoders and encoder-decoders as well as on causal models, which is how the paper compares them.
Its artifacts are those of a refresh with the same settings.
"""

from __future__ import annotations

from prefect import flow

from eigenshift.readiness.preflight import require_inputs
from eigenshift.reporting.outcomes import Detection
from eigenshift.settings import DetectionSettings, Role
from flows import detection_stages, stages
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.run_labels import name_run
from flows.runners import run_tasks


@flow(name="detect", flow_run_name=name_run, result_serializer="json")
def detect(settings: DetectionSettings) -> Detection:
    """Read a model's activations on labelled texts and judge its units and layers.

    Args:
        settings: Everything the run reads; what concerns generation is ignored.
    """
    use_credentials(settings.execution.credentials_block)
    journal = RunJournal("detect", settings)
    with journal.recording(), run_tasks(settings.execution):
        require_inputs(settings, only_detects=True)
        model = stages.identify_model(journal, must_generate=False)
        samples = stages.ingest_samples(journal, (Role.labelled,))
        detection_stages.study_detection(journal, model, samples[Role.labelled])
    return Detection(run_id=journal.record.run_id, store=journal.root, stages=journal.record.stages)


def run_detect(settings: DetectionSettings) -> Detection:
    """Run the flow here."""
    return detect(settings)
