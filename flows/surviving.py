"""How much of a patch is left in the formats it may be served in, before anybody serves it.

Started by `eigenshift survive`, about the patch of an earlier run, which it leaves as it was. What
base and patched model said there is in the store, so nothing is generated again.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow

from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation import stages as evaluation
from eigenshift.ledger.runs import SURVIVE, choose_run
from eigenshift.patches.stages import BUILD_PATCH
from eigenshift.reporting.survival_tables import Survival
from eigenshift.settings import BlockFormat, RefreshSettings, override_settings
from eigenshift.stages import tables
from eigenshift.store.storage import Store
from flows import stages
from flows.benchmarking import find_patch
from flows.credentials import use_credentials
from flows.journal import RunJournal
from flows.publication import publish_survival
from flows.run_labels import name_run
from flows.runners import run_tasks

DEFAULT_FORMATS = (BlockFormat.q8_0, BlockFormat.q6_k, BlockFormat.q4_k, BlockFormat.q4_0)


@flow(name=SURVIVE, flow_run_name=name_run, result_serializer="json")
def survive(
    settings: RefreshSettings,
    run: str,
    arm: str | None = None,
    formats: Sequence[BlockFormat] = DEFAULT_FORMATS,
    is_whole: bool = False,
) -> Survival:
    """Round the patched model and the base in each format, and measure what is left.

    Args:
        settings: Of the run it is about.
        run: Its id.
        arm: Which of its patches; by default the one that was judged.
        formats: Of GGUF files.
        is_whole: Round all linear layers and the embedding, not only what the patch changes.
    """
    from eigenshift.model.block_formats import require_gguf  # torch takes seconds to import

    use_credentials(settings.execution.credentials_block)
    require_gguf()
    journal = RunJournal(SURVIVE, settings)
    about = choose_run(journal.artifacts.store, run)
    judged = arm or about.judged
    patch = find_patch(about, judged)
    journal.record.judged = judged
    with journal.recording(), run_tasks(settings.execution):
        journal.enter_found(BUILD_PATCH.name, patch, judged)
        model = stages.identify_model(journal)
        sources = stages.ingest(journal)
        study = stages.study_components(journal, model, sources)
        prompts = journal.refer_to_files(sources.prompts, tables.EVALUATION_PROMPTS)
        arms = {BASE_ARM: stages.Arm(patch=None), judged: stages.Arm(patch=patch)}
        said = stages.generate(journal, model, prompts, arms)
        inputs = evaluation.SurvivalInputs(
            model=model,
            patch=patch,
            states=study.head_states,
            study=study.continuations,
            neutral=study.neutral_texts,
            continuations=said.continuations,
            scores=said.scores,
        )
        key = evaluation.SurvivalKey.of(
            settings, arm=judged, formats=tuple(formats), is_whole=is_whole
        )
        measured = journal.run_one(evaluation.MEASURE_SURVIVAL, inputs, key)
        outcome = Survival(
            run_id=journal.record.run_id,
            store=journal.root,
            about=about.run_id,
            judged=judged,
            stages=journal.record.stages,
            survival=journal.read(measured, tables.SURVIVAL).to_pylist(),
        )
    publish_survival(outcome)
    return outcome


def run_survive(
    store: str,
    run_id: str | None,
    arm: str | None,
    formats: Sequence[BlockFormat],
    overrides: Sequence[str],
    *,
    is_whole: bool,
) -> Survival:
    """Run the flow here, by the settings of the run it is about.

    Args:
        store: Root URL of the store.
        run_id: A run with a patch; by default the latest refresh that ended.
        arm: Which of its patches; by default the one that was judged.
        formats: Of GGUF files; none: `DEFAULT_FORMATS`.
        overrides: `key.path=value`.
        is_whole: Round all linear layers and the embedding.

    Raises:
        SettingsError: There is no such run or patch, or an override does not fit.
    """
    about = choose_run(Store(store), run_id)
    settings = override_settings(about.settings, overrides, f"settings of run {about.run_id}")
    return survive(
        settings.model_copy(update={"store": store}),
        about.run_id,
        arm,
        tuple(formats) or DEFAULT_FORMATS,
        is_whole,
    )
