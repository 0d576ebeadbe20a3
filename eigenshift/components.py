"""Score the head's components by how toxic-aligned they are, and choose which to damp.

Reads head states (toxic against matched non-toxic positions) and the head's decomposition; writes
`components.parquet` (`schemas.COMPONENTS`). Method: Shaik et al., NeurIPS 2025 (arXiv 2509.16660),
RQ3. Signs of singular vectors are arbitrary, so every score but `release` is sign-invariant. The
patch itself is `patching.py`'s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.stats
import torch
from torch import Tensor

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.calibration import (
    Choice,
    ToxicStates,
    choose_within_budget,
    collect_calibration_states,
)
from eigenshift.decomposition import Decomposition, Matrix
from eigenshift.errors import ComponentError
from eigenshift.models import LanguageModel
from eigenshift.settings import ComponentScore, ComponentSettings

STEP_VERSION = 1
N_EXPLAINED = 64
N_TOKENS = 10
MIN_ENRICHMENT = 10.0
"""A toxic token is at least this many times as frequent at toxic positions as at matched ones."""


@dataclass(frozen=True)
class ComponentScores:
    """One value per component in each array, shape (component,)."""

    sign: Matrix
    """+1 or -1: multiplies v so that delta is not negative."""
    delta: Matrix
    effect_size: Matrix
    auroc: Matrix
    logit_gain: Matrix
    release_score: Matrix
    p_value: Matrix
    q_value: Matrix

    def ranking_key(self, score: ComponentScore) -> Matrix:
        """The values a score ranks by, larger = more toxic."""
        return {
            ComponentScore.effect_size: self.effect_size,
            ComponentScore.abs_delta: self.delta,
            ComponentScore.auroc: self.auroc,
            ComponentScore.logit_gain: self.logit_gain,
            ComponentScore.release: self.release_score,
        }[score]


def score_components(
    toxic: Matrix, nontoxic: Matrix, decomposition: Decomposition, toxic_direction: Matrix
) -> ComponentScores:
    """Score every component.

    Args:
        toxic: Head states about to generate a toxic token, shape (position, hidden).
        nontoxic: Matched states, shape (position, hidden).
        decomposition: Singular values and vectors of the head.
        toxic_direction: Mean head row of the toxic tokens generated minus the mean over the
            vocabulary, shape (hidden,): a^T W with a = 1_T / |T| - 1 / vocab.

    Returns:
        Scores in the order of the components. `logit_gain` sums over components to the difference
        of the toxic tokens' mean logit gap between toxic and non-toxic states.

    Raises:
        ComponentError: Fewer than two states of a kind.
    """
    if min(len(toxic), len(nontoxic)) < 2:
        raise ComponentError(
            f"head states: expected at least 2 of each kind, found {len(toxic)} toxic and "
            f"{len(nontoxic)} non-toxic. Raise prompts.n_selection."
        )
    v = decomposition.v
    a_toxic, a_nontoxic = toxic @ v, nontoxic @ v
    difference = a_toxic.mean(0) - a_nontoxic.mean(0)
    # No difference, no orientation: the largest entry of v is made positive.
    largest = v[np.abs(v).argmax(0), np.arange(v.shape[1])]
    sign = np.where(difference == 0, np.sign(largest), np.sign(difference))
    pooled = np.sqrt(
        (
            (len(toxic) - 1) * a_toxic.var(0, ddof=1)
            + (len(nontoxic) - 1) * a_nontoxic.var(0, ddof=1)
        )
        / (len(toxic) + len(nontoxic) - 2)
    )
    auroc = compute_auroc(a_toxic, a_nontoxic)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect_size = np.nan_to_num(np.abs(difference) / pooled, nan=0.0, posinf=0.0)
        test = scipy.stats.ttest_ind(a_toxic, a_nontoxic, axis=0, equal_var=False)
    p_value = np.nan_to_num(np.asarray(test.pvalue), nan=1.0)
    return ComponentScores(
        sign=sign,
        delta=np.abs(difference),
        effect_size=effect_size,
        auroc=np.maximum(auroc, 1 - auroc),
        logit_gain=(toxic_direction @ v) * difference,
        release_score=_score_as_released(toxic, nontoxic, v),
        p_value=p_value,
        q_value=np.asarray(scipy.stats.false_discovery_control(p_value)),
    )


def _score_as_released(toxic: Matrix, nontoxic: Matrix, v: Matrix) -> Matrix:
    """The published code's score, its two errors included, for comparison only.

    It projects with V instead of V^T and ranks the signed difference, which the arbitrary signs
    of the vectors decide (design.md section 2).
    """
    difference: Matrix = toxic.mean(0) - nontoxic.mean(0)
    if v.shape[0] != v.shape[1]:
        return np.zeros(v.shape[1])
    return np.asarray(difference @ v.T)


def compute_auroc(toxic: Matrix, nontoxic: Matrix) -> Matrix:
    """AUROC per column, ties averaged; arguments of shape (position, component)."""
    ranks = scipy.stats.rankdata(np.concatenate([toxic, nontoxic]), axis=0)
    n_toxic, n_nontoxic = len(toxic), len(nontoxic)
    rank_sum = ranks[:n_toxic].sum(0) - n_toxic * (n_toxic + 1) / 2
    return np.asarray(rank_sum / (n_toxic * n_nontoxic))


def find_candidates(scores: ComponentScores, settings: ComponentSettings) -> list[int]:
    """Components that may be damped, most toxic first.

    Those that pass the false-discovery bound, reach the smallest effect size and raise the toxic
    tokens' logits: damping a component with a negative logit gain would raise them.

    Raises:
        ComponentError: None passes.
    """
    passing = [
        index
        for index in rank_components(scores, settings.score)
        if scores.q_value[index] <= settings.false_discovery_rate
        and scores.effect_size[index] >= settings.min_effect_size
        and scores.logit_gain[index] > 0
    ]
    if not passing:
        raise ComponentError(
            f"components: expected at least one with q <= {settings.false_discovery_rate} and "
            f"effect size >= {settings.min_effect_size}, found none (largest effect size "
            f"{scores.effect_size.max():.2f}). Use more prompts, lower "
            "components.min_effect_size, or set components.n_components."
        )
    return passing


def take_top(scores: ComponentScores, settings: ComponentSettings, n_components: int) -> list[int]:
    """The top of the ranking, without any bound: what `components.n_components` asks for.

    Raises:
        ComponentError: More are asked for than there are.
    """
    ranking = rank_components(scores, settings.score)
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
    settings: ComponentSettings,
    *,
    max_tokens: int,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Score and choose components, explain the strongest by their tokens, write the table.

    Args:
        language_model: The unpatched model.
        states: `schemas.HEAD_STATES` rows.
        decomposition: Of the model's head.
        neutral_texts: Neutral samples, half of which calibrate the choice.
        settings: Score, bounds and factor.
        max_tokens: Longer neutral texts are truncated.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives `components.parquet`.
    """
    weight, tokenizer = language_model.head_weight, language_model.tokenizer
    toxic, nontoxic, direction = _split_states(states, weight)
    scores = score_components(toxic, nontoxic, decomposition, direction)
    choice: Choice | None = None
    if settings.n_components is not None:
        selected = take_top(scores, settings, settings.n_components)
    else:
        choice = choose_within_budget(
            language_model,
            collect_calibration_states(language_model, neutral_texts, max_tokens, tokens_per_batch),
            _gather_toxic_states(states, weight),
            find_candidates(scores, settings),
            decomposition.v,
            factor=settings.factor,
            max_perplexity_increase=settings.max_perplexity_increase,
            max_components=settings.max_components,
        )
        selected = choice.components
    if not selected:
        raise ComponentError(
            "components: expected at least one that lowers the probability of toxic tokens and "
            f"costs at most {settings.max_perplexity_increase:.0%} perplexity, found none. Raise "
            "components.max_perplexity_increase or components.factor."
        )
    ranking = rank_components(scores, settings.score)
    explained = dict.fromkeys([*selected, *ranking[:N_EXPLAINED]])
    tokens = _explain_components(list(explained), scores.sign, decomposition, weight, tokenizer)
    rank_of = {index: rank for rank, index in enumerate(ranking)}
    rows = [
        {
            "component_index": index,
            "sigma": decomposition.sigma[index],
            "delta": scores.delta[index],
            "effect_size": scores.effect_size[index],
            "auroc": scores.auroc[index],
            "logit_gain": scores.logit_gain[index],
            "release_score": scores.release_score[index],
            "p_value": scores.p_value[index],
            "q_value": scores.q_value[index],
            "energy_share": decomposition.energy_shares[index],
            "relative_gap": decomposition.relative_gaps[index],
            "rank": rank_of[index],
            "is_selected": index in selected,
            "factor": settings.factor if index in selected else 1.0,
            "tokens_up": tokens[index][0] if index in tokens else None,
            "tokens_down": tokens[index][1] if index in tokens else None,
        }
        for index in range(len(decomposition.sigma))
    ]
    workspace.write_rows("components.parquet", rows, schemas.COMPONENTS)
    workspace.facts = {
        "n_components": len(rows),
        "selected": selected,
        "calibration": None if choice is None else asdict(choice),
        "n_toxic": len(toxic),
        "n_nontoxic": len(nontoxic),
        "logit_gain_selected": float(scores.logit_gain[selected].sum()),
        "logit_gain_total": float(scores.logit_gain.sum()),
    }


def _split_states(states: pa.Table, weight: Tensor) -> tuple[Matrix, Matrix, Matrix]:
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    values = np.stack(states["state"].to_numpy(zero_copy_only=False)).astype(np.float64)
    token_ids = states["token_id"].to_numpy()[is_toxic]
    toxic_rows = weight[token_ids.tolist()].detach().cpu().double().numpy()
    mean_row = weight.detach().float().mean(0).cpu().double().numpy()
    return values[is_toxic], values[~is_toxic], toxic_rows.mean(0) - mean_row


def _gather_toxic_states(states: pa.Table, weight: Tensor) -> ToxicStates:
    """Toxic states, and the tokens that set them apart from the matched ones.

    A word that was blamed by mistake is usually common: it does not count as a toxic token.
    """
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    token_ids = states["token_id"].to_numpy()
    n_tokens = len(weight)
    toxic_share = np.bincount(token_ids[is_toxic], minlength=n_tokens) / is_toxic.sum()
    other_share = np.bincount(token_ids[~is_toxic], minlength=n_tokens) / (~is_toxic).sum()
    enriched = np.flatnonzero((toxic_share > 0) & (toxic_share >= MIN_ENRICHMENT * other_share))
    values = np.stack(states.filter(states["is_toxic"])["state"].to_numpy(zero_copy_only=False))
    return ToxicStates(
        torch.from_numpy(values.astype(np.float32)).to(weight.device),
        torch.from_numpy(enriched).to(weight.device),
    )


def _explain_components(
    indices: list[int],
    sign: Matrix,
    decomposition: Decomposition,
    weight: Tensor,
    tokenizer: Any,
) -> dict[int, tuple[list[str], list[str]]]:
    """Tokens whose logits the toxic end of a component raises and lowers most (W v, signed)."""
    v = weight.new_tensor(decomposition.v[:, indices] * sign[indices]).float()
    effects = weight.detach().float() @ v
    n_tokens = min(N_TOKENS, len(effects))
    up = effects.topk(n_tokens, dim=0).indices.T.tolist()
    down = (-effects).topk(n_tokens, dim=0).indices.T.tolist()
    return {
        index: (
            [tokenizer.decode([token]) for token in up[place]],
            [tokenizer.decode([token]) for token in down[place]],
        )
        for place, index in enumerate(indices)
    }
