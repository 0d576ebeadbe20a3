"""Each term of a Fisher edit: what it brings, what it costs, how steadily, and what it says.

Benefit is to first order at the unpatched model, cost to second order in the exact Fisher matrix;
their interval and how often a term helps come from resampling prompts. Tokens are those that its
written direction moves at the head (inside the trunk: as if nothing came between), contexts those
where the direction it reads is most active. Rows of `schemas.FISHER_COMPONENTS`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base.arrays import FloatArray, IntArray
from eigenshift.components.meaning import HIGH, LOW, find_contexts, list_contexts, list_token_ends
from eigenshift.components.selection_stability import draw_stratified_counts
from eigenshift.model.gradients import HEAD
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.fisher.deep_study import DeepStudy, Term
from eigenshift.patches.fisher.head_study import HeadStudy

INTERVAL = (0.025, 0.975)


def describe_terms(
    language_model: LanguageModel,
    study: HeadStudy | DeepStudy,
    edit: ModelEdit,
    states: pa.Table,
    *,
    n_resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of `schemas.FISHER_COMPONENTS`, those that bring most first.

    Args:
        language_model: The unpatched model.
        study: That found the edit; at the unpatched model again.
        edit: What is shipped.
        states: `schemas.HEAD_STATES` rows.
        n_resamples: Of the prompts.
        seed: Of the resamples.
    """
    terms = _list_terms(edit, states)
    if not terms:
        return []
    left, right = (
        torch.stack([getattr(term, side) for term in terms], 1) if _is_head(terms) else None
        for side in ("left", "right")
    )
    if isinstance(study, HeadStudy):
        assert left is not None  # noqa: S101 - it changes nothing else
        assert right is not None  # noqa: S101
        fisher = study.find_fisher(left, right)
        per_row = study.find_contributions(left, right)
        prompts = _number(study.prompts[: len(per_row)])
        weights = study.weights
    else:
        fisher = study.find_fisher(terms)
        per_row = study.find_toxic_projections(terms)
        toxic = study.toxic
        prompts = _number(torch.stack([toxic.prompts[rows[0]] for rows in toxic.rows]))
        weights = torch.stack([toxic.states.weights[rows].sum() for rows in toxic.rows])
    benefits = _resample(per_row, weights, prompts, n_resamples, seed)
    costs = fisher.diagonal().cpu().numpy() / 2.0
    order = np.argsort(-benefits[0], kind="stable")
    rows = [
        {
            "component_index": rank,
            "module": terms[place].layer,
            "step": float(np.sqrt(2.0 * costs[place])),
            "benefit": float(benefits[0, place]),
            "benefit_low": float(np.quantile(benefits[1:, place], INTERVAL[0])),
            "benefit_high": float(np.quantile(benefits[1:, place], INTERVAL[1])),
            "cost": float(costs[place]),
            "inclusion_frequency": float((benefits[1:, place] > 0).mean()),
        }
        for rank, place in enumerate(order)
    ]
    _add_meaning(language_model, rows, [terms[place] for place in order], states)
    return rows


def _is_head(terms: Sequence[Term]) -> bool:
    return all(term.layer == HEAD for term in terms)


def _list_terms(edit: ModelEdit, states: pa.Table) -> list[Term]:
    """The edit's rank-one changes; those of the head read what is positive at toxic positions."""
    terms: list[Term] = []
    if edit.logits is not None:
        toxic = states.filter(states["is_toxic"])["state"].to_numpy(zero_copy_only=False)
        mean = torch.from_numpy(np.stack(toxic).mean(0, dtype=np.float64))
        signs = torch.sign(mean @ edit.logits.right)
        signs[signs == 0] = 1.0
        left, right = edit.logits.left * signs, edit.logits.right * signs
        terms += [Term(HEAD, 0.0, left[:, i], right[:, i]) for i in range(edit.logits.rank)]
    for name, linear in edit.linears.items():
        terms += [
            Term(name, 0.0, linear.left[:, i], linear.right[:, i]) for i in range(linear.rank)
        ]
    return terms


def _number(prompts: Tensor) -> IntArray:
    _, numbers = np.unique(prompts.numpy(), return_inverse=True)
    return np.asarray(numbers)


def _resample(
    per_row: Tensor, weights: Tensor, prompts: IntArray, n_resamples: int, seed: int
) -> FloatArray:
    """Relative fall of the toxic tokens' probability, (1 + resample, term): first as measured."""
    n_prompts = int(prompts.max()) + 1
    sums = np.zeros((n_prompts, per_row.shape[1]))
    totals = np.zeros(n_prompts)
    np.add.at(sums, prompts, per_row.double().cpu().numpy())
    np.add.at(totals, prompts, weights.double().cpu().numpy())
    counts = draw_stratified_counts(np.ones(n_prompts, dtype=bool), n_resamples, seed)
    counts = np.concatenate([np.ones((1, n_prompts)), counts])
    return np.asarray(-(counts @ sums) / (counts @ totals)[:, None])


def _add_meaning(
    language_model: LanguageModel,
    rows: Sequence[dict[str, Any]],
    terms: Sequence[Term],
    states: pa.Table,
) -> None:
    """Tokens of the head's terms and of those that write what it reads; contexts of its own."""
    hidden = language_model.head.hidden
    for place, term in enumerate(terms):
        effects = term.left[:, None]
        if term.layer != HEAD:
            if len(term.left) != hidden:
                continue
            weight = language_model.head_weight.detach().float()
            effects = weight @ effects.to(weight)
        (ends,) = list_token_ends(effects, language_model.tokenizer)
        rows[place] |= {"tokens_up": ends.up, "tokens_down": ends.down}
    of_head = [place for place, term in enumerate(terms) if term.layer == HEAD]
    if not of_head:
        return
    read = np.stack([terms[place].right.numpy() for place in of_head], 1)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for context in find_contexts(states, read, of_head):
        found[context["component_index"]].append(context)
    for place in of_head:
        rows[place] |= {
            "contexts_high": list_contexts(found[place], HIGH),
            "contexts_low": list_contexts(found[place], LOW),
        }
