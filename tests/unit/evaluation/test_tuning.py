"""The search: every point screened, the best few confirmed, the best named with its settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.budget_texts import NEUTRAL, BudgetTexts
from eigenshift.components.calibration import ToxicStates
from eigenshift.components.decomposition import decompose_head
from eigenshift.evaluation.comparison import ArmEvidence
from eigenshift.evaluation.stages import ConfirmationKey, ScreeningKey
from eigenshift.evaluation.trials import (
    AUTOMATIC,
    Row,
    TrialPoint,
    choose_for_confirmation,
    find_front,
)
from eigenshift.evaluation.tuning import confirm_trials, screen_trials
from eigenshift.model.encoding import encode_text
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel
from eigenshift.patches.edits import HeadEdit, ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.store.workspace import Workspace
from tests.support.keys import make_key
from tests.support.plain_loss import measure_loss

KEY = make_key(
    ScreeningKey,
    "tune.scores=[effect_size, logit_gain]",
    "tune.n_components=[1, 3]",
    "tune.factors=[0.0, 0.5]",
    "tune.max_perplexity_increase=0.2",
    "evaluation.max_tokens=24",
    automatic_factors=(0.5,),
)


AUTOMATIC_FACTORS = {4: 0.5, 9: 0.75}
"""What the automatic choice lowers, and how far; 0.5 is the least."""


def make_components(n_components: int, selected: dict[int, float] | None = None) -> pa.Table:
    """A table with every score; effect size falls with the index, logit gain rises.

    Selected components are given with their factors.
    """
    factors = selected or {}
    rows = [
        {
            "component_index": index,
            "effect_size": float(n_components - index),
            "logit_gain": float(index),
            "delta": 0.0,
            "auroc": 0.5,
            "release_score": 0.0,
            "is_selected": index in factors,
            "factor": factors.get(index, 1.0),
        }
        for index in range(n_components)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.COMPONENTS)


@pytest.fixture
def texts(tiny_language_model: LanguageModel, neutral_texts: list[str]) -> BudgetTexts:
    """Two kinds of harmless text."""
    encoded = [encode_text(tiny_language_model, text, 24).token_ids for text in neutral_texts]
    return BudgetTexts({NEUTRAL: encoded[:20], "labelled": encoded[30:50]})


def screen(
    language_model: LanguageModel, texts: BudgetTexts, workspace: Workspace, **changes: Any
) -> list[Row]:
    """Screen and read back."""
    sequence = encode_text(language_model, "The green garden was open.", 24).token_ids
    ((_, states),) = iterate_head_states(language_model, [sequence], 512)
    screen_trials(
        language_model,
        make_components(32),
        {0.5: make_components(32, selected=AUTOMATIC_FACTORS)},
        decompose_head(language_model.head_weight),
        ToxicStates(states.float(), torch.tensor([70, 71, 90]), torch.ones(len(states))),
        texts,
        KEY.model_copy(update=changes),
        tokens_per_batch=512,
        workspace=workspace,
    )
    return pq.read_table(workspace.path("trials.parquet")).to_pylist()


def test_every_point_is_screened_with_what_a_patched_model_would_cost(
    tiny_language_model: LanguageModel, texts: BudgetTexts, workspace: Workspace
) -> None:
    """Perplexity of the kind that suffers most, against the model run once per trial and kind."""
    rows = screen(tiny_language_model, texts, workspace)
    assert [(row["score"], row["n_components"], row["factor"]) for row in rows] == [
        *((s, k, f) for s in ("effect_size", "logit_gain") for k in (1, 3) for f in (0.0, 0.5)),
        (AUTOMATIC, 2, 0.5),
    ]
    assert rows[2]["component_indices"] == [0, 1, 2]
    assert rows[6]["component_indices"] == [31, 30, 29]
    assert rows[8]["component_indices"] == [4, 9]
    model = tiny_language_model.model
    base = {kind: measure_loss(model, found) for kind, found in texts.by_kind.items()}
    worst: set[str] = set()
    v = decompose_head(tiny_language_model.head_weight).v
    for row in rows:
        indices = row["component_indices"]
        is_automatic = row["score"] == AUTOMATIC
        factors = [AUTOMATIC_FACTORS[i] for i in indices] if is_automatic else row["factor"]
        assert row["component_factors"] == (
            factors if is_automatic else [row["factor"]] * len(indices)
        )
        edit = HeadEdit.scale_directions(v[:, indices], factors)
        with run_hooked(tiny_language_model, ModelEdit(edit)):
            rises = {
                kind: measure_loss(model, found) - base[kind]
                for kind, found in texts.by_kind.items()
            }
        worst.add(max(rises, key=rises.__getitem__))
        increase = np.expm1(max(rises.values()))
        assert row["perplexity_increase"] == pytest.approx(increase, abs=2e-5)
        assert row["is_in_budget"] == (row["perplexity_increase"] <= 0.2)
    assert worst == set(texts.by_kind)  # no kind decides alone


def test_the_best_of_the_screening_leaves_fewest_toxic_tokens_within_the_budget(
    tiny_language_model: LanguageModel, texts: BudgetTexts, workspace: Workspace
) -> None:
    """At most one, and none where the budget allows none."""
    rows = screen(tiny_language_model, texts, workspace, max_perplexity_increase=10.0)
    (best,) = [row for row in rows if row["is_best"]]
    assert best["toxic_token_share"] == min(row["toxic_token_share"] for row in rows) < 1
    assert best["is_on_front"]
    rows = screen(tiny_language_model, texts, workspace, max_perplexity_increase=-0.9)
    assert not any(row["is_best"] for row in rows)


def test_how_much_is_screened_is_logged_before_it_takes_its_time(
    tiny_language_model: LanguageModel,
    texts: BudgetTexts,
    workspace: Workspace,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Points of the grid and texts, at the start."""

    def stop(*_: Any, **__: Any) -> None:
        raise ComponentError("made up")

    monkeypatch.setattr("eigenshift.evaluation.tuning.measure_grid", stop)
    with caplog.at_level("INFO", "eigenshift"), pytest.raises(ComponentError, match="made up"):
        screen(tiny_language_model, texts, workspace)
    n_texts = len(texts.sequences)
    assert f"screening of trials: points=9 texts={n_texts}" in caplog.text


def test_a_grid_larger_than_the_head_is_refused(
    tiny_language_model: LanguageModel, texts: BudgetTexts, workspace: Workspace
) -> None:
    """The head has 32 components."""
    with pytest.raises(ComponentError, match="1 to 32 components"):
        screen(tiny_language_model, texts, workspace, n_components=(33,))


def test_the_front_holds_what_no_other_point_beats() -> None:
    """Equal points are both on it; a point beaten in one number only stays."""
    cost = np.array([0.0, 0.1, 0.1, 0.2, 0.3, 0.3])
    left = np.array([1.0, 0.6, 0.7, 0.6, 0.2, 0.2])
    assert find_front(cost, left).tolist() == [True, True, False, False, True, True]


def make_row(score: str, indices: list[int], factor: float, cost: float, left: float) -> Row:
    """A screened trial within a budget of 0.05 if it costs no more."""
    return {
        "score": score,
        "n_components": len(indices),
        "factor": factor,
        "component_indices": indices,
        "component_factors": [factor] * len(indices),
        "stage": "screened",
        "perplexity_increase": cost,
        "kl_to_base": cost,
        "changed_argmax_share": cost,
        "toxic_token_share": left,
        "is_in_budget": cost <= 0.05,
        "is_on_front": False,
        "is_best": False,
    }


TRIALS = [
    make_row("effect_size", [3, 1], 0.0, 0.04, 0.5),
    make_row("auroc", [1, 3], 0.0, 0.04, 0.5),
    make_row("auroc", [1, 3], 0.5, 0.01, 0.8),
    make_row("logit_gain", [7], 0.0, 0.02, 0.6),
    make_row("logit_gain", [7, 8], 0.0, 0.06, 0.1),
    make_row("auroc", [9], 0.0, 0.00, 1.2),
]


def test_the_same_components_are_confirmed_once() -> None:
    """In order of what they leave; nothing beyond the budget, nothing that adds toxic tokens."""
    chosen = choose_for_confirmation(TRIALS, 10)
    assert chosen == [
        TrialPoint("effect_size", 2, 0.0),
        TrialPoint("logit_gain", 1, 0.0),
        TrialPoint("auroc", 2, 0.5),
    ]
    assert choose_for_confirmation(TRIALS, 1) == chosen[:1]


def test_a_graded_trial_is_another_than_a_uniform_one() -> None:
    """The same components and factor, but some are not lowered as far: both are confirmed."""
    graded = make_row(AUTOMATIC, [1, 3], 0.0, 0.03, 0.55) | {"component_factors": [0.0, 0.5]}
    uniform = make_row(AUTOMATIC, [1, 3], 0.0, 0.04, 0.5)
    chosen = choose_for_confirmation([*TRIALS[:2], graded], 10)
    assert chosen == [TrialPoint("effect_size", 2, 0.0), TrialPoint(AUTOMATIC, 2, 0.0)]
    assert choose_for_confirmation([*TRIALS[:2], uniform], 10) == chosen[:1]


def make_evidence(shares: list[float]) -> ArmEvidence:
    """Ten continuations of each prompt, of which a share is toxic."""
    ids = [f"p{place}" for place in range(len(shares)) for _ in range(10)]
    toxic = [float(n < 10 * share) for share in shares for n in range(10)]
    table = {"prompt_id": ids, "toxicity_probability": toxic}
    return ArmEvidence(pa.table({"prompt_id": ids}), pa.table(table))


def confirm(evidence: dict[str, ArmEvidence], workspace: Workspace) -> list[Row]:
    """Confirm and read back."""
    prompts = pa.table(
        {
            "prompt_id": [f"p{place}" for place in range(4)],
            "language": ["en"] * 4,
            "toxicity": [0.1] * 4,
        }
    )
    confirm_trials(
        pa.Table.from_pylist(TRIALS, schema=schemas.TRIALS),
        prompts,
        evidence,
        make_key(
            ConfirmationKey,
            "tune.max_perplexity_increase=0.05",
            "evaluation.n_bootstrap=200",
            arms=tuple(evidence),
        ),
        workspace=workspace,
    )
    return pq.read_table(workspace.path("trials.parquet")).to_pylist()


def test_the_best_is_decided_by_generation(workspace: Workspace) -> None:
    """The trial that screening liked less may win; others stay screened, with no rate."""
    first, second = TrialPoint("effect_size", 2, 0.0).arm, TrialPoint("logit_gain", 1, 0.0).arm
    rows = confirm(
        {
            "base": make_evidence([0.8, 0.4, 0.4, 0.0]),
            first: make_evidence([0.8, 0.4, 0.0, 0.0]),
            second: make_evidence([0.4, 0.2, 0.2, 0.0]),
        },
        workspace,
    )
    assert [row["stage"] for row in rows] == [
        *("confirmed", "screened", "screened", "confirmed", "screened", "screened")
    ]
    assert rows[3]["toxicity_rate"] == pytest.approx(0.2)
    assert rows[3]["reduction"] == pytest.approx(0.5)
    assert rows[0]["reduction"] == pytest.approx(0.25)
    assert rows[3]["reduction_low"] <= 0.5 <= rows[3]["reduction_high"]
    assert rows[1]["toxicity_rate"] is None
    assert [row["is_best"] for row in rows] == [False] * 3 + [True] + [False] * 2
    assert workspace.path("chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_trial_that_helps_nothing_is_not_the_best(workspace: Workspace) -> None:
    """More toxicity than the base: none is named."""
    arm = TrialPoint("effect_size", 2, 0.0).arm
    evidence = {"base": make_evidence([0.2] * 4), arm: make_evidence([0.4] * 4)}
    assert not any(row["is_best"] for row in confirm(evidence, workspace))


def test_the_settings_of_a_trial_are_ones_a_refresh_takes() -> None:
    """Whatever `tune` prints can be given to `--set`."""
    from eigenshift.settings import load_preset

    point = TrialPoint("logit_gain", 4, 0.25)
    settings = load_preset("demo", point.overrides).components
    assert (settings.score, settings.n_components, settings.factor) == ("logit_gain", 4, 0.25)
    automatic = load_preset("paper", TrialPoint(AUTOMATIC, 9, 0.5).overrides).components
    assert (automatic.n_components, automatic.min_factor) == (None, 0.5)
