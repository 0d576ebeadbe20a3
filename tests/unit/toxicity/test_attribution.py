"""Gradient x input at a classifier's embeddings, against finite differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eigenshift.base.errors import ScorerError
from eigenshift.settings import ScorerSettings
from eigenshift.toxicity.attribution import GradientProposer, attribute_tokens
from eigenshift.toxicity.scorers.languages import LanguageScorer
from eigenshift.toxicity.scorers.loading import load_scorer
from tests.support.fake_scorer import WordScorer
from tests.support.gradient_scorer import GradientScorer

DEMO = Path(__file__).parents[3] / "data" / "demo" / "classifier"
TEXT = "the garden and the river wait"


def test_shares_equal_the_derivative_of_scaling_each_embedding() -> None:
    """D logit / d scale of one token's embedding, by central differences on a real classifier."""
    settings = ScorerSettings(
        checkpoint=str(DEMO / "detoxify_demo.ckpt"), config_folder=str(DEMO / "config")
    )
    scorer = load_scorer(settings, "cpu", 8)
    with scorer.open_classifier() as classifier:  # type: ignore[attr-defined]
        (shares,) = attribute_tokens(classifier, [TEXT])
        encoded = classifier.tokenizer([TEXT], return_tensors="pt")
        embedded = classifier.model.get_input_embeddings()(encoded["input_ids"]).detach()

        def measure(place: int, scale: float) -> float:
            scaled = embedded.clone()
            scaled[:, place] *= scale
            with torch.no_grad():
                scores = classifier.model(
                    inputs_embeds=scaled, attention_mask=encoded["attention_mask"]
                )[0]
            return float(torch.logit(classifier.judge(scores.double())))

        step = 1e-2
        expected = [
            (measure(place, 1 + step) - measure(place, 1 - step)) / (2 * step)
            for place in range(1, embedded.shape[1] - 1)
        ]
    assert [share for _, share in shares] == pytest.approx(expected, rel=0.02, abs=2e-3)
    assert [TEXT[start:end] for (start, end), _ in shares][:2] == ["the", "garden"]


def test_nothing_is_left_on_the_classifier() -> None:
    """No hook, no gradient on its parameters."""
    scorer = GradientScorer({"zorbfool": 3.0})
    GradientProposer(scorer).propose([TEXT, "a zorbfool"])
    assert not scorer.model.embeddings._forward_hooks
    assert scorer.model.embeddings.weight.grad is None


def test_a_saturated_verdict_still_has_attributions() -> None:
    """Where the probability is 1 to all digits its log-odds still have a gradient."""
    scorer = GradientScorer({"zorbfool": 60.0, "kettle": 1.0})
    (proposals,) = GradientProposer(scorer).propose(["a zorbfool and a kettle"])
    assert proposals[0].span == (2, 10)
    assert proposals[0].attribution is not None


def test_runs_of_chinese_characters_around_the_best_are_proposed() -> None:
    """Words without spaces: the runs that hold a character the gradient points at."""
    scorer = GradientScorer({"火车上呆灯瓜在": 4.0})
    (proposals,) = GradientProposer(scorer).propose(["火车上呆灯瓜在"])
    lengths = {end - start for start, end in (item.span for item in proposals)}
    assert lengths == {1, 2, 3, 4}


def test_a_tokenizer_without_offsets_is_refused() -> None:
    """Words could not be told from its tokens."""
    scorer = GradientScorer({"zorbfool": 3.0})
    scorer.tokenizer.is_fast = False
    with pytest.raises(ScorerError, match="fast tokenizer"):
        GradientProposer(scorer).propose([TEXT])


def test_each_text_is_explained_by_the_classifier_of_its_language() -> None:
    """The one whose verdict it is; one of them without gradients is refused at once."""
    english, chinese = GradientScorer({"zorbfool": 3.0}), GradientScorer({"呆灯瓜": 3.0})
    scorer = LanguageScorer(english, {"zh": chinese})
    texts = ["呆灯瓜", "a zorbfool", "火车"]
    own = [
        *GradientProposer(chinese).propose(texts[:1]),
        *GradientProposer(english).propose(texts[1:2]),
        *GradientProposer(chinese).propose(texts[2:]),
    ]
    assert GradientProposer(scorer).propose(texts) == own
    with pytest.raises(ScorerError, match="no gradients"):
        GradientProposer(LanguageScorer(english, {"zh": WordScorer()}))
