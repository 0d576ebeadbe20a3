"""Comparison: metrics by hand, intervals that cover, a gate that holds on noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import EvaluationError
from eigenshift.evaluation.agreement import ScoredArms
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.comparison import (
    NO_TEXTS,
    ArmEvidence,
    compare_arms,
    compute_tph,
    measure_distinct,
)
from eigenshift.evaluation.gate import check_gate
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.settings import EvaluationSettings, GateSettings
from eigenshift.store.workspace import Workspace

SETTINGS = EvaluationSettings(n_bootstrap=400)
N_PROMPTS, N_SAMPLES = 60, 5


def make_prompts(n_prompts: int = N_PROMPTS) -> pa.Table:
    """Prompts in two languages, half of them toxic, one without a score."""
    rows = [
        {
            "prompt_id": f"p{place:03d}",
            "part": "evaluation",
            "dataset": "made-up",
            "language": "en" if place % 3 else "zh",
            "toxicity": None if place == 0 else 0.9 if place % 2 else 0.1,
            "prompt": "",
        }
        for place in range(n_prompts)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.PROMPTS)


def make_evidence(probabilities: list[list[float | None]]) -> ArmEvidence:
    """One list of probabilities per prompt."""
    continuations, scores = [], []
    for place, row in enumerate(probabilities):
        for sample, probability in enumerate(row):
            key = {"prompt_id": f"p{place:03d}", "sample_index": sample}
            continuations.append({**key, "token_ids": [place, sample, place]})
            scores.append({**key, "scorer": "words", "toxicity_probability": probability})
    return ArmEvidence(
        pa.Table.from_pylist(continuations, schema=schemas.CONTINUATIONS),
        pa.Table.from_pylist(scores, schema=schemas.SCORES),
    )


def make_fluency(costs: dict[str, float]) -> pa.Table:
    """Texts of 10 to 29 tokens at 2 nats a token, times a factor per arm."""
    rows = [
        {
            "arm": arm,
            "sample_id": f"s{place}",
            "language": "en",
            "n_tokens": 10 + place,
            "nll": (10 + place) * (2.0 + 0.01 * place) * cost,
            "kl_to_base": 0.1 * (10 + place) * (cost != 1.0),
            "n_changed_argmax": int(cost != 1.0),
        }
        for arm, cost in costs.items()
        for place in range(20)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.FLUENCY)


def draw_arms(rates: dict[str, float], seed: int = 0) -> dict[str, ArmEvidence]:
    """Arms whose continuations are toxic with the given probabilities."""
    generator = np.random.default_rng(seed)
    return {
        arm: make_evidence(
            np.where(generator.random((N_PROMPTS, N_SAMPLES)) < rate, 0.9, 0.1).tolist()
        )
        for arm, rate in rates.items()
    }


def compare(
    evidence: dict[str, ArmEvidence],
    workspace: Workspace,
    costs: dict[str, float] | None = None,
    prompts: pa.Table | None = None,
    indomain: pa.Table = NO_TEXTS,
) -> list[dict[str, Any]]:
    """Compare and read back."""
    compare_arms(
        prompts if prompts is not None else make_prompts(),
        evidence,
        make_fluency(dict.fromkeys(evidence, 1.0) if costs is None else costs),
        indomain,
        SETTINGS,
        scorer="words",
        toxic_threshold=0.5,
        workspace=workspace,
    )
    return pq.read_table(workspace.path("evaluations.parquet")).to_pylist()


def test_toxicity_metrics_by_hand(workspace: Workspace) -> None:
    """Two prompts: shares 1/2 and 0, maxima 0.9 and 0.5; exactly 0.5 is not above the threshold."""
    evidence = {"base": make_evidence([[0.9, 0.1], [0.5, 0.3]])}
    table = MetricTable(compare(evidence, workspace, prompts=make_prompts(2)))
    found = {
        metric: table.find("base", metric)["value"]
        for metric in ("toxicity_rate", "toxicity_mean", "expected_max_toxicity", "any_toxic_share")
    }
    assert found == pytest.approx(
        {
            "toxicity_rate": 0.25,
            "toxicity_mean": 0.45,
            "expected_max_toxicity": 0.7,
            "any_toxic_share": 0.5,
        }
    )


def test_the_toxicity_rate_weighs_prompts_not_continuations(workspace: Workspace) -> None:
    """A prompt with an unscored continuation counts as much as the others."""
    evidence = {"base": make_evidence([[0.9, None], [0.1, 0.1]])}
    rows = compare(evidence, workspace, prompts=make_prompts(2))
    assert MetricTable(rows).find("base", "toxicity_rate")["value"] == 0.5
    assert MetricTable(rows).find("base", "unscored_share")["value"] == 0.25


def test_a_prompt_without_any_score_is_left_out_not_zero(workspace: Workspace) -> None:
    """Nothing known is not nothing toxic."""
    evidence = {"base": make_evidence([[0.9, 0.9], [None, None]])}
    rows = compare(evidence, workspace, prompts=make_prompts(2))
    assert MetricTable(rows).find("base", "toxicity_rate")["value"] == 1.0


def test_perplexity_is_token_weighted_and_the_sentence_mean_is_not(workspace: Workspace) -> None:
    """Both conventions, from the sums by hand."""
    rows = compare(draw_arms({"base": 0.3}), workspace)
    tokens = np.arange(10, 30)
    per_token = 2.0 + 0.01 * np.arange(20)
    table = MetricTable(rows)
    assert table.find("base", "perplexity")["value"] == pytest.approx(
        np.exp((tokens * per_token).sum() / tokens.sum())
    )
    assert table.find("base", "perplexity_sentence")["value"] == pytest.approx(
        np.exp(per_token).mean()
    )


@pytest.mark.parametrize(
    ("reduction", "ratio", "expected", "expected_paper"),
    [
        (0.5, 1.0, 2 / 3, 2 / 3),
        (1.0, 2.0, 2 / 3, 2 / 3),
        (-0.2, 1.0, 0, 0),
        (0.5, 0.5, 2 / 3, 4 / 7),
    ],
)
def test_both_tph_forms_by_hand(
    reduction: float, ratio: float, expected: float, expected_paper: float
) -> None:
    """R is capped at 1 in `tph`; `tph_paper` punishes any change of perplexity."""
    tph, paper = compute_tph(np.array([reduction]), np.array([ratio]))
    assert tph[0] == pytest.approx(expected)
    assert paper[0] == pytest.approx(expected_paper)


def test_the_paper_headline_gives_the_papers_tph() -> None:
    """LLaMA-2-7B: 11.13% -> 4.71% at perplexity 6.23 -> 9.84 gives 60.4 in the capped form."""
    tph, _ = compute_tph(np.array([(11.13 - 4.71) / 11.13]), np.array([9.84 / 6.23]))
    assert 100 * tph[0] == pytest.approx(60.4, abs=0.1)


@pytest.mark.parametrize(
    ("reduction", "ratio"), [(np.nan, 1.0), (-np.inf, 1.0), (np.nan, np.inf), (0.5, np.nan)]
)
def test_tph_is_unknown_where_a_part_of_it_is(reduction: float, ratio: float) -> None:
    """A base without toxic continuations has nothing to reduce, which is no score of 0."""
    assert np.isnan(compute_tph(np.array([reduction]), np.array([ratio]))).all()


def test_a_base_that_is_never_toxic_has_no_tph(workspace: Workspace) -> None:
    """Null in the table, like the reduction it is made of."""
    table = MetricTable(compare(draw_arms({"base": 0.0, "eigenshift": 0.0}), workspace))
    for metric in ("toxicity_reduction", "tph", "tph_paper"):
        row = table.find("eigenshift", metric)
        assert (row["value"], row["low"], row["high"]) == (None, None, None)


def test_without_measured_neutral_texts_the_remedy_is_named(workspace: Workspace) -> None:
    """All of them may be too short to have a likelihood."""
    with pytest.raises(EvaluationError, match="neutral texts"):
        compare(draw_arms({"base": 0.3}), workspace, costs={})


def test_intervals_cover_the_truth() -> None:
    """Of 200 samples of 60 prompts, about 95% of the intervals hold the true mean."""
    generator = np.random.default_rng(0)
    n_covered = 0
    for seed in range(200):
        values = generator.binomial(5, 0.3, 60) / 5
        estimate = summarise(average(values, draw_counts(60, 500, seed)), 0.95)
        assert estimate.low is not None
        assert estimate.high is not None
        n_covered += estimate.low <= 0.3 <= estimate.high
    assert 180 <= n_covered <= 199


def test_differences_are_paired(workspace: Workspace) -> None:
    """An arm that is always a tenth better has a difference without width, unlike its level."""
    generator = np.random.default_rng(1)
    base = generator.random((N_PROMPTS, 1)) < 0.5
    worse = make_evidence(np.where(np.repeat(base, 10, 1), 0.9, 0.1).tolist())
    better = np.where(np.repeat(base, 10, 1), 0.9, 0.1)
    better[:, 0] = 0.1
    rows = compare({"base": worse, "eigenshift": make_evidence(better.tolist())}, workspace)
    table = MetricTable(rows)
    reduction = table.find("eigenshift", "toxicity_reduction")
    level = table.find("eigenshift", "toxicity_rate")
    assert reduction["high"] - reduction["low"] == pytest.approx(0, abs=1e-9)
    assert level["high"] - level["low"] > 0.1


def test_slices_are_reported_where_they_have_prompts(workspace: Workspace) -> None:
    """Languages and prompt classes, never a slice of nothing."""
    rows = compare(draw_arms({"base": 0.3}), workspace)
    slices = {row["slice"]: row["n"] for row in rows if row["metric"] == "toxicity_rate"}
    assert slices == {
        "all": 60,
        "language=en": 40,
        "language=zh": 20,
        "prompt=toxic": 30,
        "prompt=nontoxic": 29,
    }


def test_a_further_scorer_is_a_slice_of_its_own(workspace: Workspace) -> None:
    """Its verdicts on all prompts, at its own threshold; the deciding scorer's rows stay as is."""
    evidence = draw_arms({"base": 0.4, "eigenshift": 0.1})
    scores = {arm: found.scores for arm, found in evidence.items()}
    compare_arms(
        make_prompts(),
        evidence,
        make_fluency(dict.fromkeys(evidence, 1.0)),
        NO_TEXTS,
        SETTINGS,
        scorer="words",
        toxic_threshold=0.5,
        workspace=workspace,
        further=[ScoredArms("strict", 0.95, scores), ScoredArms("same", 0.5, scores)],
    )
    table = MetricTable(pq.read_table(workspace.path("evaluations.parquet")).to_pylist())
    strict = table.find("base", "toxicity_rate", "scorer=strict")
    assert (strict["value"], strict["scorer"]) == (0.0, "strict")
    for metric in ("toxicity_rate_difference", "toxicity_reduction"):
        same = table.find("eigenshift", metric, "scorer=same")
        decided = table.find("eigenshift", metric)
        assert [same[key] for key in ("value", "low", "high", "n")] == [
            decided[key] for key in ("value", "low", "high", "n")
        ]
    pairs = pq.read_table(workspace.path("arm_pairs.parquet")).to_pylist()
    by_slice = {row["slice"]: row["difference"] for row in pairs}
    assert set(by_slice) == {"all", "scorer=strict", "scorer=same"}
    assert (by_slice["scorer=same"], by_slice["scorer=strict"]) == (by_slice["all"], 0.0)


def test_fluency_is_also_reported_language_by_language(workspace: Workspace) -> None:
    """A language whose texts become dearer shows, though the whole hardly moves."""
    fluency = pa.concat_tables(
        [
            make_fluency({"base": 1.0, "eigenshift": 1.0}),
            pa.Table.from_pylist(
                [
                    {**row, "language": "zh", "sample_id": f"zh-{row['sample_id']}"}
                    for row in make_fluency({"base": 1.0, "eigenshift": 1.1}).to_pylist()
                ],
                schema=schemas.FLUENCY,
            ),
        ]
    )
    compare_arms(
        make_prompts(),
        draw_arms({"base": 0.4, "eigenshift": 0.1}),
        fluency,
        NO_TEXTS,
        SETTINGS,
        scorer="words",
        toxic_threshold=0.5,
        workspace=workspace,
    )
    table = MetricTable(pq.read_table(workspace.path("evaluations.parquet")).to_pylist())
    changes = {
        name: table.find("eigenshift", "perplexity_change", name)["value"]
        for name in ("language=en", "all", "language=zh")
    }
    assert changes["language=en"] == 0.0
    tokens = np.arange(10, 30)
    nll = tokens * (2.0 + 0.01 * np.arange(20))
    assert changes["language=zh"] == pytest.approx(np.exp(0.1 * nll.sum() / tokens.sum()) - 1)
    assert 0 < changes["all"] < changes["language=zh"]


def test_indomain_text_has_metrics_of_its_own_by_kind(workspace: Workspace) -> None:
    """Beside those on neutral text, which it does not touch."""
    kinds = [
        row | {"language": kind, "sample_id": f"{kind}-{row['sample_id']}"}
        for kind, cost in (("labelled", 1.2), ("continuation", 1.0))
        for row in make_fluency({"base": 1.0, "eigenshift": cost}).to_pylist()
    ]
    indomain = pa.Table.from_pylist(kinds, schema=schemas.FLUENCY)
    evidence = draw_arms({"base": 0.4, "eigenshift": 0.1})
    table = MetricTable(compare(evidence, workspace, indomain=indomain))
    tokens = np.arange(10, 30)
    nll = (tokens * (2.0 + 0.01 * np.arange(20))).sum() / tokens.sum()
    name = "perplexity_change_indomain"
    found = {
        part: table.find("eigenshift", name, part)["value"]
        for part in ("text=labelled", "text=continuation", "all")
    }
    assert found == pytest.approx(
        {
            "text=labelled": np.expm1(0.2 * nll),
            "text=continuation": 0.0,
            "all": np.expm1(0.1 * nll),
        }
    )
    assert table.find("eigenshift", "perplexity_change")["value"] == 0.0
    assert table.find("base", "perplexity_indomain")["value"] == pytest.approx(np.exp(nll))
    assert table.get("eigenshift", "changed_argmax_share_indomain") is None
    without = MetricTable(compare(evidence, workspace))
    assert without.get("eigenshift", name) is None


def test_every_arm_is_held_against_both_controls(workspace: Workspace) -> None:
    """Paired differences to random changes and to the word filter, where these were run."""
    rates = {"base": 0.4, "random_components": 0.4, "token_suppression": 0.2, "ours": 0.1}
    table = MetricTable(compare(draw_arms(rates), workspace))
    level = {arm: table.find(arm, "toxicity_rate")["value"] for arm in rates}
    for control in ("random_components", "token_suppression"):
        found = table.find("ours", f"toxicity_rate_minus_{control}")
        assert found["value"] == pytest.approx(level["ours"] - level[control])
        assert found["low"] < found["value"] < found["high"]
        assert table.get(control, f"toxicity_rate_minus_{control}") is None
    pairs = pq.read_table(workspace.path("arm_pairs.parquet")).to_pylist()
    assert len(pairs) == 6
    assert {row["slice"] for row in pairs} == {"all"}


def test_an_arm_is_held_against_the_control_of_its_own_operating_point(
    workspace: Workspace,
) -> None:
    """A filter built for +5% says nothing of a patch built for +1%."""
    rates = {"base": 0.4, "token_suppression": 0.1, "token_suppression@0.01": 0.3, "ours@0.01": 0.2}
    table = MetricTable(compare(draw_arms({**rates, "alone@kl0.02": 0.2}), workspace))
    level = {arm: table.find(arm, "toxicity_rate")["value"] for arm in rates}
    found = table.find("ours@0.01", "toxicity_rate_minus_token_suppression")["value"]
    assert found == pytest.approx(level["ours@0.01"] - level["token_suppression@0.01"])
    assert table.get("alone@kl0.02", "toxicity_rate_minus_token_suppression") is None


def test_an_arm_with_other_prompts_is_refused(workspace: Workspace) -> None:
    """Arms are only comparable on the same prompts."""
    evidence = {**draw_arms({"base": 0.3}), "eigenshift": make_evidence([[0.1]])}
    with pytest.raises(EvaluationError, match="arm eigenshift"):
        compare(evidence, workspace)


def test_distinct_counts_ngrams_over_all_continuations() -> None:
    """(1,2,1) and (1,2): three different unigrams of... two; bigrams (1,2), (2,1) of three."""
    table = pa.Table.from_pylist(
        [{"token_ids": [1, 2, 1]}, {"token_ids": [1, 2]}], schema=schemas.CONTINUATIONS
    )
    assert measure_distinct(table) == pytest.approx({1: 2 / 5, 2: 2 / 3, 3: 1.0})


def gate(
    rates: dict[str, float], costs: dict[str, float], workspace: Workspace, seed: int = 0
) -> dict[str, bool]:
    """Which checks of the gate pass."""
    rows = compare(draw_arms(rates, seed), workspace, costs)
    checks = check_gate(rows, GateSettings(), "eigenshift")
    return {check.name: check.is_passed for check in checks}


def test_the_gate_passes_a_real_effect_within_budget(workspace: Workspace) -> None:
    """Toxicity far below base and random components, perplexity +4%."""
    rates = {"base": 0.4, "random_components": 0.4, "eigenshift": 0.1}
    costs = {"base": 1.0, "random_components": 1.0, "eigenshift": 1.02}
    assert all(gate(rates, costs, workspace).values())


def test_the_gate_names_the_budget_that_is_exceeded(workspace: Workspace) -> None:
    """A patch that costs too much is held for that reason alone."""
    rates = {"base": 0.4, "random_components": 0.4, "eigenshift": 0.1}
    costs = {"base": 1.0, "random_components": 1.0, "eigenshift": 1.2}
    failed = [name for name, passed in gate(rates, costs, workspace).items() if not passed]
    assert failed == ["perplexity stays in budget"]


def test_the_gate_holds_when_random_components_do_as_well(workspace: Workspace) -> None:
    """Then the method found nothing: any damping of the head would do."""
    rates = {"base": 0.4, "random_components": 0.1, "eigenshift": 0.1}
    costs = dict.fromkeys(rates, 1.0)
    assert not gate(rates, costs, workspace)["random components do not do the same"]


def test_the_gate_holds_on_noise(workspace: Workspace) -> None:
    """With no effect at all it promotes in at most a few of a hundred repetitions."""
    rates = {"base": 0.3, "random_components": 0.3, "eigenshift": 0.3}
    costs = dict.fromkeys(rates, 1.0)
    n_promoted = sum(all(gate(rates, costs, workspace, seed).values()) for seed in range(30))
    assert n_promoted <= 2


def test_a_model_that_is_never_toxic_is_held_not_divided_by_zero(workspace: Workspace) -> None:
    """A relative reduction of nothing is undefined and does not pass."""
    rates = {"base": 0.0, "random_components": 0.0, "eigenshift": 0.0}
    assert not any(
        passed
        for name, passed in gate(rates, dict.fromkeys(rates, 1.0), workspace).items()
        if "toxicity" in name or "random" in name
    )
