"""Components: planted signals are found, whatever the signs; the published scoring is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from eigenshift.artifacts import Workspace
from eigenshift.components import (
    ComponentScores,
    compute_auroc,
    find_candidates,
    rank_components,
    score_components,
    take_top,
    write_components,
)
from eigenshift.decomposition import Decomposition, decompose_head
from eigenshift.errors import ComponentError
from eigenshift.models import LanguageModel
from eigenshift.settings import ComponentScore, ComponentSettings

HIDDEN, VOCAB, N_PLANTED = 96, 400, 10


@dataclasses.dataclass(frozen=True)
class Planted:
    """A head with known toxic directions and states that move along them."""

    weight: torch.Tensor
    decomposition: Decomposition
    components: set[int]
    toxic: np.ndarray[Any, Any]
    nontoxic: np.ndarray[Any, Any]
    direction: np.ndarray[Any, Any]


def plant(seed: int) -> Planted:
    """Shift anisotropic states along random components, by amounts of random sign.

    The components' own scale varies over a factor of ten, so the largest raw difference is not
    the clearest one.
    """
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(VOCAB, HIDDEN)))[0]
    right = np.linalg.qr(generator.normal(size=(HIDDEN, HIDDEN)))[0]
    sigma = np.geomspace(30, 1, HIDDEN)
    weight = torch.from_numpy(left * sigma @ right.T).float()
    decomposition = decompose_head(weight)
    planted = generator.choice(HIDDEN, N_PLANTED, replace=False)
    scale = np.geomspace(3, 0.3, HIDDEN)[generator.permutation(HIDDEN)]
    shift = np.zeros(HIDDEN)
    shift[planted] = generator.choice([-1, 1], N_PLANTED) * scale[planted] * 0.8

    def draw(n_states: int) -> np.ndarray[Any, Any]:
        return generator.normal(size=(n_states, HIDDEN)) * scale

    v = decomposition.v
    return Planted(
        weight,
        decomposition,
        {int(index) for index in planted},
        (draw(300) + shift) @ v.T,
        draw(1200) @ v.T,
        generator.normal(size=HIDDEN),
    )


def flip_signs(decomposition: Decomposition, seed: int) -> Decomposition:
    """Another equally valid decomposition of the same head."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], len(decomposition.sigma))
    return dataclasses.replace(decomposition, v=decomposition.v * signs)


def score(planted: Planted, decomposition: Decomposition | None = None) -> ComponentScores:
    """Score a planted case."""
    return score_components(
        planted.toxic, planted.nontoxic, decomposition or planted.decomposition, planted.direction
    )


def recall(planted: Planted, scores: ComponentScores, by: ComponentScore) -> float:
    """Share of planted components among the first ten of a ranking."""
    return len(planted.components & set(rank_components(scores, by)[:N_PLANTED])) / N_PLANTED


@pytest.mark.parametrize("seed", range(5))
def test_planted_components_are_recovered_under_random_sign_flips(seed: int) -> None:
    """At least 90% of the planted directions are selected, for any signs of the vectors."""
    planted = plant(seed)
    for flip in range(10):
        scores = score(planted, flip_signs(planted.decomposition, flip))
        assert recall(planted, scores, ComponentScore.effect_size) >= 0.9
        assert recall(planted, scores, ComponentScore.auroc) >= 0.9


def test_the_release_mode_recovers_no_more_than_chance() -> None:
    """The published code's V for V^T finds planted components about as often as a draw would."""
    recalls = [
        recall(
            planted, score(planted, flip_signs(planted.decomposition, flip)), ComponentScore.release
        )
        for planted in map(plant, range(10))
        for flip in range(10)
    ]
    chance = N_PLANTED / HIDDEN
    assert abs(np.mean(recalls) - chance) < 0.05


@pytest.mark.parametrize(
    "by", [item for item in ComponentScore if item is not ComponentScore.release]
)
def test_scores_do_not_depend_on_signs(by: ComponentScore) -> None:
    """Every score but the published one is sign-invariant."""
    planted = plant(0)
    expected = score(planted).ranking_key(by)
    found = score(planted, flip_signs(planted.decomposition, 1)).ranking_key(by)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_automatic_choice_takes_the_planted_components_and_no_others() -> None:
    """The false-discovery and effect-size bounds keep noise out."""
    planted = plant(1)
    scores = score(planted)
    helpful = {index for index in planted.components if scores.logit_gain[index] > 0}
    assert set(find_candidates(scores, ComponentSettings())) == helpful


def test_logit_gains_sum_to_the_difference_of_the_logit_gap() -> None:
    """sum_i c_i = a^T W (mean_T h - mean_N h), here with a^T W given as the direction."""
    planted = plant(2)
    expected = planted.direction @ (planted.toxic.mean(0) - planted.nontoxic.mean(0))
    assert score(planted).logit_gain.sum() == pytest.approx(expected, rel=1e-9)


def test_auroc_equals_scikit_learn() -> None:
    """Ties included."""
    generator = np.random.default_rng(0)
    toxic, nontoxic = generator.integers(0, 5, (40, 3)), generator.integers(0, 6, (60, 3))
    labels = np.repeat([1, 0], [40, 60])
    expected = [
        roc_auc_score(labels, np.concatenate([toxic[:, i], nontoxic[:, i]])) for i in range(3)
    ]
    np.testing.assert_allclose(compute_auroc(toxic, nontoxic), expected, atol=1e-12)


def test_effect_size_and_q_values_follow_their_definitions() -> None:
    """Against a computation by hand for one component."""
    planted = plant(3)
    scores = score(planted)
    a_toxic = planted.toxic @ planted.decomposition.v[:, 7]
    a_nontoxic = planted.nontoxic @ planted.decomposition.v[:, 7]
    pooled = np.sqrt((299 * a_toxic.var(ddof=1) + 1199 * a_nontoxic.var(ddof=1)) / 1498)
    assert scores.effect_size[7] == pytest.approx(abs(a_toxic.mean() - a_nontoxic.mean()) / pooled)
    assert (scores.q_value >= scores.p_value - 1e-15).all()


def test_nothing_toxic_is_not_forced() -> None:
    """Where no component passes, the choice is refused with what was found, not made up."""
    generator = np.random.default_rng(0)
    planted = plant(0)
    states = generator.normal(size=(200, HIDDEN))
    scores = score_components(states[:80], states[80:], planted.decomposition, planted.direction)
    with pytest.raises(ComponentError, match="largest effect size"):
        find_candidates(scores, ComponentSettings())


def test_more_components_than_the_head_has_are_refused() -> None:
    """The error names the setting and the rank."""
    with pytest.raises(ComponentError, match=r"components\.n_components"):
        take_top(score(plant(0)), ComponentSettings(), HIDDEN + 1)


def test_the_table_orients_components_towards_toxicity(
    tiny_language_model: LanguageModel, neutral_texts: list[str], workspace: Workspace
) -> None:
    """Delta >= 0, ranks are a permutation, and tokens_up are those W v raises on the toxic side."""
    hidden = tiny_language_model.head.hidden
    generator = np.random.default_rng(0)
    states = generator.normal(size=(120, hidden)).astype(np.float32)
    states[:40] += generator.normal(size=hidden).astype(np.float32)
    table = pa.table(
        {
            "is_toxic": [True] * 40 + [False] * 80,
            "token_id": [3] * 120,
            "state": list(states),
        }
    )
    decomposition = decompose_head(tiny_language_model.head_weight)
    write_components(
        tiny_language_model,
        table,
        decomposition,
        pa.table({"sample_id": [f"s{i}" for i in range(60)], "text": neutral_texts}),
        ComponentSettings(n_components=4, factor=0.25),
        max_tokens=32,
        tokens_per_batch=256,
        workspace=workspace,
    )
    rows = pq.read_table(workspace.path("components.parquet")).to_pylist()
    assert sorted(row["rank"] for row in rows) == list(range(hidden))
    assert [row["factor"] for row in rows if row["is_selected"]] == [0.25] * 4
    assert {row["factor"] for row in rows if not row["is_selected"]} == {1.0}
    top = min(rows, key=lambda row: row["rank"])
    v = decomposition.v[:, top["component_index"]]
    v = v * np.sign((states[:40].mean(0) - states[40:].mean(0)) @ v)
    raised = int(np.argmax(tiny_language_model.head_weight.numpy() @ v))
    assert top["tokens_up"][0] == tiny_language_model.tokenizer.decode([raised])
