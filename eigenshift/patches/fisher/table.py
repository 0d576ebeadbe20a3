"""The work of the stage `find_fisher_components`: the edit, and the table of its terms."""

from __future__ import annotations

import pyarrow as pa
from safetensors.torch import load_file, save_file

from eigenshift.base import schemas
from eigenshift.components.budget_texts import gather_budget_texts
from eigenshift.components.harmless_texts import BUDGET, FISHER
from eigenshift.components.head_states import permute_labels
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edit_files import list_tensors, read_edit
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.fisher.deep_study import DeepStudy
from eigenshift.patches.fisher.evidence import FisherEvidence, gather_toxic_texts
from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.ridge import choose_ridge
from eigenshift.patches.fisher.rounds import spend_budget
from eigenshift.patches.fisher.terms import describe_terms
from eigenshift.patches.stages import FISHER_EDIT_NAME, FisherInputs, FisherKey, FisherPlace
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.artifact import Artifact
from eigenshift.store.workspace import Workspace


def open_fisher_edit(artifact: Artifact) -> ModelEdit:
    """Read the change of the model that an artifact of the stage holds."""
    return read_edit(load_file(artifact.fetch(FISHER_EDIT_NAME)))


def _start_study(
    language_model: LanguageModel, evidence: FisherEvidence, key: FisherKey, tokens_per_batch: int
) -> HeadStudy | DeepStudy:
    """Of what the key says; the ridge is chosen where it is known to help, at the head."""
    kind = HeadStudy if key.place is FisherPlace.head else DeepStudy
    study = kind(
        language_model, evidence, key.n_terms, tokens_per_batch=tokens_per_batch, seed=key.seed
    )
    if isinstance(study, HeadStudy):
        choose_ridge(study, key.max_perplexity_increase, key.seed)
    return study


def find_fisher_components(
    language_model: LanguageModel,
    states: pa.Table,
    continuations: pa.Table,
    neutral_texts: pa.Table,
    harmless_texts: pa.Table,
    key: FisherKey,
    *,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Find the change that lowers toxicity most within the budget, and describe its terms.

    Args:
        language_model: The unpatched model.
        states: `schemas.HEAD_STATES` rows.
        continuations: `schemas.CONTINUATIONS` rows that they are of.
        neutral_texts: `schemas.SAMPLES` rows, half of which calibrate.
        harmless_texts: `schemas.HARMLESS_TEXTS` rows for calibration.
        key: What is changed, in how many terms and rounds, for which budget.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives the edit and the table of its terms.

    Raises:
        ComponentError: No token sets toxic positions apart, or there is no text to calibrate on.
    """
    if key.permute_labels:
        states = permute_labels(states, key.seed)
    metric_texts, budget_texts = (
        gather_budget_texts(language_model, neutral_texts, harmless_texts, key.max_tokens, use=use)
        for use in (FISHER, BUDGET)
    )
    evidence = FisherEvidence(
        gather_toxic_texts(language_model, states, continuations),
        metric_texts.limit(key.max_metric_tokens // len(metric_texts.by_kind)),
        budget_texts,
    )
    study = _start_study(language_model, evidence, key, tokens_per_batch)
    edit = spend_budget(study, key.n_rounds, key.max_perplexity_increase)
    rows = describe_terms(
        language_model, study, edit, states, n_resamples=key.n_resamples, seed=key.seed
    )
    save_file(list_tensors(edit), workspace.path(FISHER_EDIT_NAME))
    workspace.write_rows(tables.FISHER_COMPONENTS.file, rows, schemas.FISHER_COMPONENTS)
    workspace.facts = {
        "place": key.place.value,
        "n_components": len(rows),
        "n_toxic": len(evidence.toxic.states.states),
        "n_toxic_tokens": len(evidence.toxic.states.token_ids),
        "n_metric_tokens": sum(map(len, evidence.metric_texts.sequences)),
        "n_budget_tokens": sum(map(len, evidence.budget_texts.sequences)),
        "calibration_rise": study.measure(edit),
    }
    if isinstance(study, HeadStudy):
        workspace.facts["metric_ridge"] = study.ridge


def carry_out(inputs: FisherInputs, key: FisherKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `find_fisher_components`."""
    artifacts = bench.artifacts
    with use_model(bench.model, bench.execution) as language_model:
        find_fisher_components(
            language_model,
            artifacts.read_shards([inputs.states], tables.HEAD_STATES.file),
            artifacts.read_shards(inputs.continuations, tables.CONTINUATIONS.file),
            artifacts.read_files(inputs.neutral),
            artifacts.read_shards([inputs.harmless], tables.HARMLESS_TEXTS.file),
            key,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )
