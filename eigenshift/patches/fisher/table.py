"""The work of the stage `find_fisher_components`: the edit, and the table of its terms."""

from __future__ import annotations

from safetensors.torch import load_file, save_file

from eigenshift.base import schemas
from eigenshift.components.budget_texts import gather_budget_texts
from eigenshift.components.harmless_texts import BUDGET, FISHER
from eigenshift.components.head_states import permute_labels
from eigenshift.model.loading import use_model
from eigenshift.patches.edit_files import list_tensors, read_edit
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.fisher.deep_study import DeepStudy
from eigenshift.patches.fisher.evidence import FisherEvidence, gather_toxic_texts
from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.rounds import spend_budget
from eigenshift.patches.fisher.terms import describe_terms
from eigenshift.patches.stages import FISHER_EDIT_NAME, FisherInputs, FisherKey, FisherPlace
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.artifact import Artifact
from eigenshift.store.workspace import Workspace

STUDIES: dict[FisherPlace, type[HeadStudy] | type[DeepStudy]] = {
    FisherPlace.head: HeadStudy,
    FisherPlace.deep: DeepStudy,
}


def open_fisher_edit(artifact: Artifact) -> ModelEdit:
    """Read the change of the model that an artifact of the stage holds."""
    return read_edit(load_file(artifact.fetch(FISHER_EDIT_NAME)))


def carry_out(inputs: FisherInputs, key: FisherKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `find_fisher_components`."""
    artifacts, n_tokens = bench.artifacts, bench.execution.tokens_per_batch
    states = artifacts.read_shards([inputs.states], tables.HEAD_STATES.file)
    if key.permute_labels:
        states = permute_labels(states, key.seed)
    continuations = artifacts.read_shards(inputs.continuations, tables.CONTINUATIONS.file)
    neutral = artifacts.read_files(inputs.neutral)
    harmless = artifacts.read_shards([inputs.harmless], tables.HARMLESS_TEXTS.file)
    with use_model(bench.model, bench.execution) as language_model:
        metric_texts, budget_texts = (
            gather_budget_texts(language_model, neutral, harmless, key.max_tokens, use=use)
            for use in (FISHER, BUDGET)
        )
        evidence = FisherEvidence(
            gather_toxic_texts(language_model, states, continuations),
            metric_texts.limit(key.max_metric_tokens // len(metric_texts.by_kind)),
            budget_texts,
        )
        study = STUDIES[key.place](
            language_model, evidence, key.n_terms, tokens_per_batch=n_tokens, seed=key.seed
        )
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
