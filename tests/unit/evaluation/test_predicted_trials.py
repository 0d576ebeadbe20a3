"""Which trials are foretold, and what their order becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eigenshift.base import schemas
from eigenshift.base.errors import EvaluationError
from eigenshift.components.decomposition import decompose_head
from eigenshift.evaluation.predicted_trials import Verdict, predict_trials
from eigenshift.evaluation.stages import PredictionKey
from eigenshift.evaluation.trials import rank_promising
from eigenshift.model.loading import LanguageModel
from eigenshift.settings import SamplingSettings

PROMPTS = {"a": [5, 9, 40], "b": [77], "c": [12, 13, 14]}
N_SAMPLES, N_TOKENS = 12, 5


def make_key(**changes: Any) -> PredictionKey:
    """With few replicates."""
    given = {
        "n_predicted": 2,
        "generation": SamplingSettings(n_samples=N_SAMPLES, n_tokens=N_TOKENS, top_p=1.0),
        "n_bootstrap": 50,
        "confidence": 0.95,
        "seed": 0,
        "scorer": "words",
        "toxic_threshold": 0.5,
        "max_unscored_share": 0.5,
        "further": (),
        "dtype": "float32",
    }
    return PredictionKey.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def said() -> tuple[pa.Table, pa.Table]:
    """Continuations, of which every third is toxic and one is unscored."""
    generator = np.random.default_rng(0)
    rows, scores = [], []
    for prompt_id, prompt in PROMPTS.items():
        for sample in range(N_SAMPLES):
            place = {"prompt_id": prompt_id, "sample_index": sample}
            drawn = generator.integers(1, 250, N_TOKENS).tolist()
            rows.append({**place, "prompt_token_ids": prompt, "token_ids": drawn})
            is_unscored = (prompt_id, sample) == ("a", 1)
            probability = None if is_unscored else float(sample % 3 == 0)
            scores.append({**place, "toxicity_probability": probability})
    return (
        pa.Table.from_pylist(rows, schemas.CONTINUATIONS),
        pa.Table.from_pylist(scores, schemas.SCORES),
    )


def make_trial(indices: list[int], factor: float, left: float, *, score: str = "auroc") -> Any:
    """A screened trial within the budget."""
    return {
        "score": score,
        "n_components": len(indices),
        "factor": factor,
        "component_indices": indices,
        "component_factors": [factor] * len(indices),
        "stage": "screened",
        "perplexity_increase": 0.01,
        "kl_to_base": 0.01,
        "toxic_token_share": left,
        "is_in_budget": True,
        "is_on_front": False,
        "is_best": False,
    }


SCREENED = pa.Table.from_pylist(
    [
        make_trial([3, 1], 0.0, 0.5),
        make_trial([1, 3], 0.0, 0.5, score="effect_size"),
        make_trial([4], 0.5, 0.6),
        make_trial([5], 0.5, 0.7),
    ],
    schemas.TRIALS,
)


def predict(
    model: LanguageModel, said: tuple[pa.Table, pa.Table], key: PredictionKey
) -> list[dict[str, Any]]:
    """The trials above."""
    return foretell(model, SCREENED, said[0], [Verdict("words", 0.5, said[1])], key)[0]


def foretell(
    model: LanguageModel,
    screened: pa.Table,
    continuations: pa.Table,
    verdicts: list[Verdict],
    key: PredictionKey,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Some trials of a model."""
    v = decompose_head(model.head_weight).v
    prompts = pa.Table.from_pylist(
        [
            {"prompt_id": name, "language": "en", "prompt": name, "toxicity": toxicity}
            for name, toxicity in zip(PROMPTS, (0.9, 0.9, 0.1), strict=True)
        ],
        schemas.PROMPTS,
    )
    return predict_trials(
        model, screened, v, prompts, continuations, verdicts, key, tokens_per_batch=256
    )


def test_the_most_promising_are_foretold_and_equal_ones_alike(
    tiny_language_model: LanguageModel, said: tuple[pa.Table, pa.Table]
) -> None:
    """Two sets of components are asked for: three trials, the fourth is left as it was."""
    rows = predict(tiny_language_model, said, make_key())
    rates = [row["predicted_rate"] for row in rows]
    assert rates[0] == rates[1]
    assert rates[3] is None
    assert rows[3]["is_prediction_reliable"] is None
    for row in rows[:3]:
        assert row["predicted_rate_low"] <= row["predicted_rate"] <= row["predicted_rate_high"]
        assert 0 < row["n_effective"] <= 12
    assert sum(row["is_best"] for row in rows) == 1
    assert pa.Table.from_pylist(rows, schemas.TRIALS).schema == schemas.TRIALS


def test_an_edit_of_nothing_has_the_base_s_rate(
    tiny_language_model: LanguageModel, said: tuple[pa.Table, pa.Table]
) -> None:
    """A factor of 1: 12 of the 35 scored texts are toxic."""
    screened = pa.Table.from_pylist([make_trial([2], 1.0, 0.9)], schemas.TRIALS)
    verdicts = [Verdict("words", 0.5, said[1])]
    ((row,), _) = foretell(tiny_language_model, screened, said[0], verdicts, make_key())
    assert row["predicted_rate"] == pytest.approx(12 / 35, abs=1e-6)
    assert row["n_effective"] == pytest.approx(12)


def test_what_is_foretold_decides_where_it_is_reliable() -> None:
    """Before the toxic tokens' probability; what cannot be relied on comes behind."""
    rows = SCREENED.to_pylist()
    rows[2] |= {"predicted_rate": 0.1, "is_prediction_reliable": True}
    rows[3] |= {"predicted_rate": 0.05, "is_prediction_reliable": False}
    order = [row["component_indices"] for row in rank_promising(rows)]
    assert order == [[4], [3, 1], [1, 3], [5]]


def test_without_a_score_nothing_is_foretold(
    tiny_language_model: LanguageModel, said: tuple[pa.Table, pa.Table]
) -> None:
    """An error that says how many texts there are."""
    nothing = pa.Table.from_pylist(
        [{**row, "toxicity_probability": None} for row in said[1].to_pylist()], schemas.SCORES
    )
    with pytest.raises(
        EvaluationError, match="expected scored continuations of the base, found none among 36"
    ):
        predict(tiny_language_model, (said[0], nothing), make_key())


def test_every_scorer_and_slice_has_its_rate(
    tiny_language_model: LanguageModel,
    said: tuple[pa.Table, pa.Table],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of an edit of nothing the base's own, counted by hand; what is unscored is left out."""
    monkeypatch.setattr("eigenshift.evaluation.slices.MIN_SLICE_PROMPTS", 1)
    screened = pa.Table.from_pylist([make_trial([2], 1.0, 0.9)], schemas.TRIALS)
    of_second = [
        {
            **row,
            "toxicity_probability": (
                None if row["sample_index"] == 3 else float(row["prompt_id"] == "b")
            ),
        }
        for row in said[1].to_pylist()
    ]
    second = pa.Table.from_pylist(of_second, schemas.SCORES)
    verdicts = [Verdict("words", 0.5, said[1]), Verdict("second", 0.5, second)]
    _, rates = foretell(tiny_language_model, screened, said[0], verdicts, make_key())
    found = {(row["scorer"], row["slice"]): row["rate"] for row in rates}
    assert found["words", "all"] == pytest.approx(12 / 35)
    assert found["words", "prompt=toxic"] == pytest.approx(8 / 23)
    assert found["words", "prompt=nontoxic"] == pytest.approx(4 / 12)
    assert found["second", "all"] == pytest.approx(11 / 32)
    assert found["second", "prompt=nontoxic"] == 0
    assert {row["scorer"] for row in rates} == {"words", "second"}
    assert pa.Table.from_pylist(rates, schemas.PREDICTED_RATES).num_rows == len(rates)
