"""Choose which of the head's components to damp, and describe all of them in one table.

Reads head states (toxic against matched non-toxic positions) and the head's decomposition; writes
`components.parquet` (`schemas.COMPONENTS`) and `component_contexts.parquet`
(`schemas.COMPONENT_CONTEXTS`). Method: Shaik et al., NeurIPS 2025 (arXiv 2509.16660), RQ3. Scores
are `scores.py`'s, their stability `selection_stability.py`'s, tokens and contexts
`meaning.py`'s; the patch itself is `patching.py`'s.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base import schemas
from eigenshift.base.arrays import FloatArray, IntArray
from eigenshift.base.errors import ComponentError, NothingToDampError
from eigenshift.components.budget_texts import gather_budget_texts
from eigenshift.components.calibration import ToxicStates, collect_calibration_states
from eigenshift.components.choice import Choice, choose_within_budget
from eigenshift.components.decomposition import Decomposition, open_decomposition
from eigenshift.components.harmless_texts import BUDGET
from eigenshift.components.head_states import permute_labels
from eigenshift.components.meaning import (
    HIGH,
    LOW,
    TokenEnds,
    find_contexts,
    find_token_ends,
    list_contexts,
)
from eigenshift.components.scores import (
    ComponentScores,
    project_states,
    read_states,
    score_components,
)
from eigenshift.components.selection_stability import SelectionStability, measure_stability
from eigenshift.components.spectral_gaps import Rotations, find_rotations
from eigenshift.components.stages import ChoiceKey, ComponentInputs, ComponentKey
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.settings import ComponentScore
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

logger = logging.getLogger(__name__)

N_EXPLAINED = 64
MIN_ENRICHMENT = 10.0
"""A toxic token is at least this many times as frequent at toxic positions as at matched ones."""
MIN_CONTEXT_ENRICHMENT = 1.5
MIN_CONTEXT_COUNT = 3
"""A token toxic in context is blamed so often, and so much more often than it occurs elsewhere."""


def find_candidates(scores: ComponentScores, key: ChoiceKey) -> list[int]:
    """Components that may be damped, most toxic first.

    Those that pass the false-discovery bound, reach the smallest effect size and raise the toxic
    tokens' logits: damping a component with a negative logit gain would raise them.

    Raises:
        NothingToDampError: None passes.
    """
    passing = [
        index
        for index in rank_components(scores, key.score)
        if scores.q_value[index] <= key.false_discovery_rate
        and scores.effect_size[index] >= key.min_effect_size
        and scores.logit_gain[index] > 0
    ]
    if not passing:
        raise NothingToDampError(
            f"components: expected at least one with q <= {key.false_discovery_rate} and "
            f"effect size >= {key.min_effect_size}, found none (largest effect size "
            f"{scores.effect_size.max():.2f}). Use more prompts, lower "
            "components.min_effect_size, or set components.n_components."
        )
    return passing


def take_top(scores: ComponentScores, key: ChoiceKey, n_components: int) -> list[int]:
    """The top of the ranking, without any bound: what `components.n_components` asks for.

    Raises:
        ComponentError: More are asked for than there are.
    """
    ranking = rank_components(scores, key.score)
    if n_components > len(ranking):
        raise ComponentError(
            f"components.n_components: expected at most {len(ranking)} (the head's rank), "
            f"found {n_components}."
        )
    return ranking[:n_components]


def rank_components(scores: ComponentScores, score: ComponentScore) -> list[int]:
    """Component indices, most toxic first; ties in order of the component."""
    return [int(index) for index in np.argsort(-scores.ranking_key(score), kind="stable")]


def write_components(
    language_model: LanguageModel,
    states: pa.Table,
    decomposition: Decomposition,
    neutral_texts: pa.Table,
    harmless_texts: pa.Table,
    key: ChoiceKey,
    *,
    max_tokens: int,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Score and choose components, explain the strongest, write the tables.

    Args:
        language_model: The unpatched model.
        states: `schemas.HEAD_STATES` rows.
        decomposition: Of the model's head.
        neutral_texts: Neutral samples, half of which calibrate the choice.
        harmless_texts: `schemas.HARMLESS_TEXTS` rows, of which those for the budget calibrate it.
        key: Score, bounds and factor.
        max_tokens: Longer neutral texts are truncated.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives both tables.

    Where no component passes the bounds, helps and stays in the budget, none is selected and the
    facts say why; the table is written all the same, since other interventions do without.
    """
    v, direction = decomposition.v, _find_toxic_direction(states, language_model.head_weight)
    activations = project_states(states, v)
    scores = score_components(activations, v, direction)
    choice: Choice | None = None
    reason: str | None = None
    top = rank_components(scores, key.score)[: key.n_components or key.max_components]
    factors: dict[int, float] = {}
    if key.n_components is not None:
        top = take_top(scores, key, key.n_components)
        factors = dict.fromkeys(top, key.factor)
    else:
        texts = gather_budget_texts(
            language_model, neutral_texts, harmless_texts, max_tokens, use=BUDGET
        )
        try:
            top = find_candidates(scores, key)
            choice = choose_within_budget(
                language_model,
                collect_calibration_states(language_model, texts, tokens_per_batch),
                gather_toxic_states(states, language_model.head_weight),
                top,
                v,
                min_factor=key.min_factor,
                n_steps=key.factor_steps,
                max_perplexity_increase=key.max_perplexity_increase,
                max_components=key.max_components,
            )
            _require_selected(choice.components, key)
        except NothingToDampError as error:
            reason = str(error)
            logger.warning("no component is damped: %s", reason)
        else:
            factors = dict(zip(choice.components, choice.factors, strict=True))
    selected = list(factors)
    stability = measure_stability(
        activations,
        v,
        direction,
        key.score,
        n_top=len(top),
        must_raise=key.n_components is None,
        n_resamples=key.n_resamples,
        seed=key.seed,
    )
    rotations = find_rotations(decomposition.sigma, decomposition.rounding)
    explained = list(dict.fromkeys([*selected, *rank_components(scores, key.score)[:N_EXPLAINED]]))
    turned = v[:, explained] * scores.sign[explained]
    ends = find_token_ends(turned, language_model.head_weight, language_model.tokenizer)
    contexts = find_contexts(states, turned, explained)
    rows = _describe_components(scores, decomposition, rotations, stability, factors, key)
    _add_meaning(rows, dict(zip(explained, ends, strict=True)), contexts)
    workspace.write_rows(tables.COMPONENTS.file, rows, schemas.COMPONENTS)
    workspace.write_rows(tables.COMPONENT_CONTEXTS.file, contexts, schemas.COMPONENT_CONTEXTS)
    workspace.facts = {
        "n_components": len(rows),
        "selected": selected,
        "nothing_selected": reason,
        "calibration": None if choice is None else asdict(choice),
        "n_toxic": len(activations.toxic),
        "n_nontoxic": len(activations.nontoxic),
        "n_prompts": activations.n_prompts,
        "logit_gain_selected": float(scores.logit_gain[selected].sum()),
        "logit_gain_total": float(scores.logit_gain.sum()),
        "n_top": stability.n_top,
        "mean_jaccard": stability.mean_jaccard,
        "split_groups": _find_split_groups(selected, rotations),
    }


def _require_selected(selected: Sequence[int], key: ChoiceKey) -> None:
    if not selected:
        raise NothingToDampError(
            "components: expected at least one that lowers the probability of toxic tokens and "
            f"costs at most {key.max_perplexity_increase:.0%} perplexity, found none. Raise "
            "components.max_perplexity_increase or components.min_factor."
        )


def _describe_components(
    scores: ComponentScores,
    decomposition: Decomposition,
    rotations: Rotations,
    stability: SelectionStability,
    factors: Mapping[int, float],
    key: ChoiceKey,
) -> list[dict[str, Any]]:
    """Rows of the table without tokens and contexts, in order of the component."""
    ranking = rank_components(scores, key.score)
    rank_of = {index: rank for rank, index in enumerate(ranking)}
    columns = {
        "sigma": decomposition.sigma,
        "delta": scores.delta,
        "effect_size": scores.effect_size,
        "auroc": scores.auroc,
        "logit_gain": scores.logit_gain,
        "release_score": scores.release_score,
        "p_value": scores.p_value,
        "q_value": scores.q_value,
        "inclusion_frequency": stability.inclusion_frequency,
        "energy_share": decomposition.energy_shares,
        "relative_gap": decomposition.relative_gaps,
        "rounding_angle": rotations.angle,
        "group_index": rotations.group,
        "group_size": rotations.group_size,
        "group_angle": rotations.group_angle,
    }
    return [
        {
            "component_index": index,
            **{name: values[index] for name, values in columns.items()},
            "rank": rank_of[index],
            "is_selected": index in factors,
            "factor": factors.get(index, 1.0),
        }
        for index in range(len(decomposition.sigma))
    ]


def _add_meaning(
    rows: Sequence[dict[str, Any]],
    ends: dict[int, TokenEnds],
    contexts: Sequence[dict[str, Any]],
) -> None:
    """Add tokens and contexts where a component is explained."""
    contexts_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for context in contexts:
        contexts_of[context["component_index"]].append(context)
    for index, tokens in ends.items():
        rows[index]["tokens_up"] = tokens.up
        rows[index]["tokens_down"] = tokens.down
        of_component = contexts_of[index]
        rows[index]["contexts_high"] = list_contexts(of_component, HIGH)
        rows[index]["contexts_low"] = list_contexts(of_component, LOW)


def _find_split_groups(selected: Sequence[int], rotations: Rotations) -> list[int]:
    """Groups of near-degenerate components of which only a part is selected.

    What such a patch takes out depends on rounding: the whole group would not.
    """
    taken = np.bincount(rotations.group[list(selected)], minlength=len(rotations.group))
    is_split = (taken > 0) & (taken < rotations.group_size[rotations.group])
    split = [
        int(group)
        for group in np.flatnonzero(is_split & (rotations.group == np.arange(len(taken))))
    ]
    if split:
        logger.warning(
            "components: the selection splits %d groups of components that the head's stored "
            "precision cannot tell apart: first components %s",
            len(split),
            split[:10],
        )
    return split


def _find_toxic_direction(states: pa.Table, weight: Tensor) -> FloatArray:
    """Mean head row of the toxic tokens generated minus the vocabulary's, shape (hidden,)."""
    token_ids = states.filter(states["is_toxic"])["token_id"].to_pylist()
    toxic_rows = weight[token_ids].detach().cpu().double().numpy()
    mean_row = weight.detach().float().mean(0).cpu().double().numpy()
    return np.asarray(toxic_rows.mean(0) - mean_row)


def gather_toxic_states(
    states: pa.Table, weight: Tensor, *, in_context: bool = False
) -> ToxicStates:
    """Toxic states, and the tokens that set them apart from the matched ones.

    Args:
        states: `schemas.HEAD_STATES` rows.
        weight: The head's, shape (vocab, hidden).
        in_context: Count tokens that are toxic in some contexts only (`find_context_tokens`).

    Raises:
        ComponentError: No token does.
    """
    find = find_context_tokens if in_context else find_toxic_tokens
    enriched = find(states, len(weight))
    toxic = states.filter(states["is_toxic"])
    if not len(enriched):
        raise ComponentError(
            f"toxic positions: expected tokens at least {MIN_ENRICHMENT:g} times as frequent there "
            f"as at matched positions, found none at {len(toxic)} toxic and "
            f"{len(states) - len(toxic)} matched ones. The words blamed are common ones: raise "
            "prompts.n_selection or components.min_attribution, choose another "
            "components.positions, or set components.n_components."
        )
    values = read_states(toxic).astype(np.float32)
    places = toxic.select(["prompt_id", "sample_index"]).to_pylist()
    keys = [(place["prompt_id"], place["sample_index"]) for place in places]
    counts = Counter(keys)
    weights = np.array([1.0 / counts[key] for key in keys], dtype=np.float32)
    return ToxicStates(
        *(torch.from_numpy(found).to(weight.device) for found in (values, enriched, weights))
    )


def find_toxic_tokens(states: pa.Table, n_tokens: int) -> IntArray:
    """Tokens generated far more often at toxic positions than at matched ones, shape (token,).

    A word that was blamed by mistake is usually common: it does not count as a toxic token.

    Args:
        states: `schemas.HEAD_STATES` rows.
        n_tokens: Size of the vocabulary.
    """
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    token_ids = states["token_id"].to_numpy()
    toxic_share = np.bincount(token_ids[is_toxic], minlength=n_tokens) / is_toxic.sum()
    other_share = np.bincount(token_ids[~is_toxic], minlength=n_tokens) / (~is_toxic).sum()
    return np.flatnonzero((toxic_share > 0) & (toxic_share >= MIN_ENRICHMENT * other_share))


def find_context_tokens(states: pa.Table, n_tokens: int) -> IntArray:
    """Toxic tokens, and those that are toxic in some contexts and harmless in others.

    An ordinary word that is an insult where it was blamed is not rare elsewhere, so the bound of
    `find_toxic_tokens` leaves it out, and a word filter must. What can tell contexts apart may aim
    at it: the harmless uses are what it pays for.

    Args:
        states: `schemas.HEAD_STATES` rows.
        n_tokens: Size of the vocabulary.

    Returns:
        Shape (token,).
    """
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    token_ids = states["token_id"].to_numpy()
    counts = np.bincount(token_ids[is_toxic], minlength=n_tokens)
    other_share = np.bincount(token_ids[~is_toxic], minlength=n_tokens) / (~is_toxic).sum()
    is_enriched = counts / is_toxic.sum() >= MIN_CONTEXT_ENRICHMENT * other_share
    in_context = np.flatnonzero((counts >= MIN_CONTEXT_COUNT) & is_enriched)
    return np.union1d(find_toxic_tokens(states, n_tokens), in_context)


def carry_out(
    inputs: ComponentInputs, key: ComponentKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `score_components`."""
    artifacts = bench.artifacts
    states = artifacts.read_shards([inputs.states], tables.HEAD_STATES.file)
    if key.components.permute_labels:
        states = permute_labels(states, key.components.seed)
    with use_model(bench.model, bench.execution) as language_model:
        write_components(
            language_model,
            states,
            open_decomposition(artifacts.open(inputs.decomposition)),
            artifacts.read_files(inputs.neutral),
            artifacts.read_shards([inputs.harmless], tables.HARMLESS_TEXTS.file),
            key.components,
            max_tokens=key.max_tokens,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )
