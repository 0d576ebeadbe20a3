"""Base against patches: every headline number by hand, from what was said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from eigenshift.api.evaluations import Evaluation, evaluate
from eigenshift.api.models import Model
from eigenshift.api.patches import ModelPatch
from eigenshift.api.study import Study
from eigenshift.api.texts import Texts, read_texts
from eigenshift.base.errors import ComponentError, EvaluationError, SettingsError
from eigenshift.components.text_halves import is_calibration_text
from tests.unit.api.conftest import SMALL, judge_words


@pytest.fixture(scope="module")
def patch(study: Study) -> ModelPatch:
    """Strong enough to be seen."""
    return study.build_patch("eigenshift", n_components=6)


@pytest.fixture(scope="module")
def found(patch: ModelPatch, prompts: tuple[Texts, Texts], neutral: Texts) -> Evaluation:
    """On prompts that made nothing, with a cost."""
    return evaluate(patch, prompts[1], judge_words, neutral=neutral, settings=SMALL)


def rate_by_hand(rows: list[dict[str, Any]], arm: str) -> float:
    """Mean over prompts of the share of continuations that are judged above one half."""
    by_prompt: dict[str, list[bool]] = {}
    for row in rows:
        if row["arm"] == arm and row["continuation"].strip():
            (value,) = judge_words([row["continuation"]])
            by_prompt.setdefault(row["prompt_id"], []).append(value > 0.5)
    return float(np.mean([np.mean(values) for values in by_prompt.values()]))


def test_toxicity_is_what_was_said(found: Evaluation) -> None:
    """Rates of both arms, and the relative reduction, counted here."""
    rows = found.continuations.arrow.to_pylist()
    base, patched = (rate_by_hand(rows, arm) for arm in found.arms)
    assert base > 0
    assert found.find("toxicity_rate", "base").value == pytest.approx(base)
    assert found.find("toxicity_rate").value == pytest.approx(patched)
    assert found.find("toxicity_reduction").value == pytest.approx((base - patched) / base)


def measure_by_hand(model: Model, neutral: Texts) -> float:
    """Exp of the mean loss over the tokens of the evaluation half, one text at a time."""
    total, n_tokens = 0.0, 0
    for row in neutral.samples.to_pylist():
        if is_calibration_text(row["sample_id"]):
            continue
        tokens = torch.tensor([model.tokenizer(row["text"])["input_ids"]])
        if tokens.shape[1] < 2:
            continue
        with torch.inference_mode():
            logits = model.model(input_ids=tokens).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")
        total += float(losses)
        n_tokens += tokens.shape[1] - 1
    return float(np.exp(total / n_tokens))


def test_perplexity_is_what_the_model_itself_gives(
    found: Evaluation, patch: ModelPatch, model: Model, neutral: Texts
) -> None:
    """Base and patch, by transformers' forward pass on unpadded texts."""
    base = measure_by_hand(model, neutral)
    with patch.apply():
        patched = measure_by_hand(model, neutral)
    assert found.find("perplexity", "base").value == pytest.approx(base, rel=1e-5)
    assert found.find("perplexity").value == pytest.approx(patched, rel=1e-5)
    assert found.find("perplexity_change").value == pytest.approx(patched / base - 1, abs=1e-5)


def test_a_patch_that_changes_nothing_changes_no_number(
    study: Study, prompts: tuple[Texts, Texts], neutral: Texts
) -> None:
    """Arms share their random numbers."""
    idle = study.build_patch("eigenshift", n_components=2, factor=1.0)
    found = evaluate({"idle": idle}, prompts[1], judge_words, neutral=neutral, settings=SMALL)
    assert found.arms == ("base", "idle")
    assert found.find("toxicity_rate_difference").value == 0
    assert found.find("perplexity_change").value == pytest.approx(0, abs=1e-6)


def test_without_neutral_texts_there_is_no_cost_and_that_is_said(
    patch: ModelPatch, prompts: tuple[Texts, Texts], found: Evaluation
) -> None:
    """Toxicity is the same."""
    short = evaluate(patch, prompts[1], judge_words, settings=SMALL)
    assert short.find("toxicity_rate") == found.find("toxicity_rate")
    assert "no cost is measured" in short._repr_html_()
    with pytest.raises(EvaluationError, match="perplexity"):
        short.find("perplexity")


def test_prompts_that_made_the_patch_are_told(
    patch: ModelPatch, prompts: tuple[Texts, Texts]
) -> None:
    """Numbers on them are too good, also where they were read under another name."""
    unseen = ["The lamp near the door", "Two boats and a cup", "A kettle for the train"]
    again = read_texts([*prompts[0].samples["text"].to_pylist()[:6], *unseen], name="another")
    own = evaluate(patch, again, judge_words, settings=SMALL)
    assert "was made from 6 of these prompts" in own._repr_html_()
    others = evaluate(patch, read_texts(unseen, name="others"), judge_words, settings=SMALL)
    assert "was made from" not in others._repr_html_()


def test_nothing_that_was_said_is_shown(found: Evaluation) -> None:
    """Only numbers, unless asked for."""
    shown = found._repr_html_() + found.continuations._repr_html_() + repr(found)
    said = [
        text
        for text in found.continuations.arrow["continuation"].to_pylist()
        if len(text.strip()) > 12
    ]
    assert said
    assert not any(text in shown for text in said)


def test_unscored_continuations_stop_an_evaluation(
    patch: ModelPatch, prompts: tuple[Texts, Texts]
) -> None:
    """They are no harmless ones."""
    with pytest.raises(EvaluationError, match="unscored continuations"):
        evaluate(patch, prompts[1], lambda texts: [None] * len(texts), settings=SMALL)


def test_arms_have_names_of_their_own(
    patch: ModelPatch, prompts: tuple[Texts, Texts], model: Model
) -> None:
    """Two of one name, none, or one called base are refused; so is a patched model."""
    for given in ([patch, patch], {}, {"base": patch}):
        with pytest.raises(SettingsError, match="evaluate: expected"):
            evaluate(given, prompts[1], judge_words, settings=SMALL)
    with patch.apply(), pytest.raises(ComponentError, match="already patched"):
        evaluate(patch, prompts[1], judge_words, settings=SMALL)
