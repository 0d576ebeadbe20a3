"""Scores of components: planted signals are found, whatever the signs; the published one is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from eigenshift.base.errors import ComponentError
from eigenshift.components.scores import (
    Activations,
    compute_auroc,
    compute_p_values,
    project_states,
    score_components,
)
from eigenshift.settings import ComponentScore
from tests.support.planted_components import (
    HIDDEN,
    N_PLANTED,
    flip_signs,
    plant,
    project,
    recall,
    score,
)


@pytest.mark.parametrize("seed", range(5))
def test_planted_components_are_recovered_under_random_sign_flips(seed: int) -> None:
    """At least 90% of the planted directions are selected, for any signs of the vectors."""
    planted = plant(seed)
    for flip in range(10):
        scores = score(planted, flip_signs(planted.decomposition, flip))
        assert recall(planted, scores, ComponentScore.effect_size) >= 0.9
        assert recall(planted, scores, ComponentScore.auroc) >= 0.9


def test_a_signed_difference_ranks_by_the_accident_of_signs() -> None:
    """On the same cases effect_size finds all planted components, a signed delta about half."""
    signed, unsigned = [], []
    for planted in map(plant, range(5)):
        for flip in range(4):
            v = flip_signs(planted.decomposition, flip).v
            activations = project(planted, v)
            difference = activations.toxic.mean(0) - activations.nontoxic.mean(0)
            top = set(np.argsort(-difference)[:N_PLANTED].tolist())
            signed.append(len(planted.components & top) / N_PLANTED)
            scores = score_components(activations, v, planted.direction)
            unsigned.append(recall(planted, scores, ComponentScore.effect_size))
    assert np.mean(unsigned) == 1.0
    assert np.mean(signed) < 0.6


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


def test_the_released_score_multiplies_states_by_v_instead_of_its_transpose() -> None:
    """As the published code does: the mean difference of the states times V^T, signs and all."""
    planted = plant(4)
    v = planted.decomposition.v
    expected = (planted.toxic.mean(0) - planted.nontoxic.mean(0)) @ v.T
    np.testing.assert_allclose(score(planted).release_score, expected, atol=1e-12)


def make_clustered(seed: int, n_prompts: int = 60, spread: float = 2.0) -> Activations:
    """No difference at all, but positions of a prompt are alike."""
    generator = np.random.default_rng(seed)
    toxic_prompts = np.repeat(np.arange(n_prompts // 2), generator.integers(1, 12, n_prompts // 2))
    nontoxic_prompts = np.repeat(np.arange(n_prompts), generator.integers(1, 12, n_prompts))
    shared = generator.normal(scale=spread, size=(2, n_prompts, 200))
    toxic = shared[0, toxic_prompts] + generator.normal(size=(len(toxic_prompts), 200))
    nontoxic = shared[1, nontoxic_prompts] + generator.normal(size=(len(nontoxic_prompts), 200))
    return Activations(toxic, nontoxic, toxic_prompts, nontoxic_prompts)


def test_alike_positions_of_a_prompt_do_not_make_p_values_small() -> None:
    """Without any effect 5% are below 0.05; a test that counts positions finds far more."""
    cases = [make_clustered(seed) for seed in range(10)]
    found = np.concatenate([compute_p_values(case) for case in cases])
    by_position = np.concatenate(
        [scipy.stats.ttest_ind(case.toxic, case.nontoxic, equal_var=False).pvalue for case in cases]
    )
    assert 0.03 < (found < 0.05).mean() < 0.08
    assert (by_position < 0.05).mean() > 0.25


def test_independent_positions_give_welchs_p_values() -> None:
    """One position per prompt: the robust variance is that of the two means."""
    generator = np.random.default_rng(0)
    toxic, nontoxic = generator.normal(size=(400, 50)), generator.normal(0.1, 1, (900, 50))
    case = Activations(toxic, nontoxic, np.arange(400), 400 + np.arange(900))
    expected = scipy.stats.ttest_ind(toxic, nontoxic, equal_var=False).pvalue
    np.testing.assert_allclose(compute_p_values(case), expected, rtol=0.05, atol=1e-4)


def test_the_robust_variance_is_that_of_sums_over_prompts() -> None:
    """Against a computation prompt by prompt for one component."""
    case = make_clustered(3)
    toxic, nontoxic = case.toxic[:, 5], case.nontoxic[:, 5]
    sums = [
        (toxic - toxic.mean())[case.toxic_prompts == prompt].sum() / len(toxic)
        - (nontoxic - nontoxic.mean())[case.nontoxic_prompts == prompt].sum() / len(nontoxic)
        for prompt in range(60)
    ]
    shares = [
        (case.toxic_prompts == prompt).sum() / len(toxic) ** 2
        + (case.nontoxic_prompts == prompt).sum() / len(nontoxic) ** 2
        for prompt in range(60)
    ]
    deviation = np.sqrt(np.square(sums).sum() * 60 / 59)
    freedom = np.sum(shares) ** 2 / np.square(shares).sum() - 2
    statistic = (toxic.mean() - nontoxic.mean()) / deviation
    expected = 2 * scipy.stats.t.sf(abs(statistic), freedom)
    assert compute_p_values(case)[5] == pytest.approx(expected, rel=1e-9)


def test_a_component_that_does_not_vary_is_no_finding() -> None:
    """A constant has effect size 0 and p = 1, not a division by zero."""
    planted = plant(0)
    activations = project(planted, planted.decomposition.v)
    for values in (activations.toxic, activations.nontoxic):
        values[:, 3] = 0.25
    scores = score_components(activations, planted.decomposition.v, planted.direction)
    assert (scores.effect_size[3], scores.p_value[3], scores.auroc[3]) == (0.0, 1.0, 0.5)


def test_too_few_states_are_refused() -> None:
    """Nothing is scored on a single toxic state."""
    table = pa.table(
        {
            "prompt_id": ["a", "a", "b"],
            "is_toxic": [True, False, False],
            "state": [np.zeros(HIDDEN, np.float32)] * 3,
        }
    )
    with pytest.raises(ComponentError, match="1 toxic and 2 non-toxic"):
        project_states(table, np.eye(HIDDEN))


def test_states_are_projected_with_their_prompts() -> None:
    """Rows of both kinds in any order; prompts keep one number for both."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(5, HIDDEN)).astype(np.float32)
    table = pa.table(
        {
            "prompt_id": ["b", "a", "b", "c", "a"],
            "is_toxic": [False, True, True, False, False],
            "state": list(states),
        }
    )
    v = plant(0).decomposition.v
    found = project_states(table, v)
    np.testing.assert_allclose(found.toxic, states[[1, 2]].astype(float) @ v, atol=1e-12)
    assert found.toxic_prompts.tolist() == [0, 1]
    assert found.nontoxic_prompts.tolist() == [1, 2, 0]
    assert found.n_prompts == 3
