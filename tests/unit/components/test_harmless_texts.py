"""Harmless texts: which are drawn, what each is for, and that no use shares a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eigenshift.base import schemas
from eigenshift.components.harmless_texts import choose_harmless_texts
from eigenshift.components.stages import HarmlessKey
from eigenshift.model.encoding import encode_text
from eigenshift.model.loading import LanguageModel
from eigenshift.store.workspace import Workspace
from tests.support.keys import make_key

Row = dict[str, Any]
N_PROMPTS, N_SAMPLES = 40, 3


def make_continuations(part: str) -> tuple[pa.Table, pa.Table]:
    """Scores below, at and above the threshold, some missing; one continuation says nothing."""
    rows, scores = [], []
    for prompt in range(N_PROMPTS):
        for sample in range(N_SAMPLES):
            key = {"prompt_id": f"{part}-{prompt:02d}", "sample_index": sample}
            number = N_SAMPLES * prompt + sample
            rows.append(
                {
                    **key,
                    "language": "en",
                    "prompt_token_ids": [9, 10, 11],
                    "token_ids": [] if number == 5 else [12 + number % 50] * 9,
                }
            )
            probability = (0.1, 0.5, 0.9, None, 0.2)[number % 5]
            scores.append({**key, "scorer": "words", "toxicity_probability": probability})
    return (
        pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS),
        pa.Table.from_pylist(scores, schema=schemas.SCORES),
    )


@pytest.fixture
def samples(neutral_texts: list[str]) -> pa.Table:
    """Labelled texts of all three labels."""
    rows = [
        {
            "sample_id": f"s{place:03d}",
            "language": "en",
            "is_toxic": (False, True, False, None)[place % 4],
            "text": f"{text} {place}",
        }
        for place, text in enumerate(neutral_texts * 3)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.SAMPLES)


def choose(
    language_model: LanguageModel,
    samples: pa.Table,
    workspace: Workspace,
    *,
    for_calibration: bool,
    order: int | None = None,
    **changes: Any,
) -> list[Row]:
    """Choose and read back; the order of all rows may be another."""
    part = "selection" if for_calibration else "evaluation"
    given = [*make_continuations(part), samples]
    if order is not None:
        generator = np.random.default_rng(order)
        given = [table.take(generator.permutation(len(table))) for table in given]
    key = make_key(HarmlessKey, for_calibration=for_calibration, n_continuations=30, n_labelled=30)
    choose_harmless_texts(
        language_model, *given, key.model_copy(update=changes), workspace=workspace
    )
    rows: list[Row] = pq.read_table(workspace.path("harmless_texts.parquet")).to_pylist()
    return rows


def test_no_two_uses_share_a_text_a_prompt_or_a_sample(
    tiny_language_model: LanguageModel, samples: pa.Table, workspace: Workspace
) -> None:
    """Fisher, budget and evaluation; all three have texts of both origins."""
    rows = [
        row
        for flag in (True, False)
        for row in choose(tiny_language_model, samples, workspace, for_calibration=flag)
    ]
    groups: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        group = row["text_id"].rpartition(":")[0] or row["text_id"]
        groups.setdefault((row["origin"], row["use"]), set()).add(group)
    assert set(groups) == {
        (origin, use)
        for origin in ("continuation", "labelled")
        for use in ("fisher", "budget", "evaluation")
    }
    for origin in ("continuation", "labelled"):
        uses = [groups[origin, use] for use in ("fisher", "budget", "evaluation")]
        assert sum(map(len, uses)) == len(set.union(*uses))


def test_the_order_of_rows_does_not_matter_and_the_seed_does(
    tiny_language_model: LanguageModel, samples: pa.Table, workspace: Workspace
) -> None:
    """Shards come in any order; another seed draws others."""
    arguments = (tiny_language_model, samples, workspace)
    first = choose(*arguments, for_calibration=True)
    assert choose(*arguments, for_calibration=True, order=1) == first
    other = choose(*arguments, for_calibration=True, seed=7)
    assert {row["text_id"] for row in other} != {row["text_id"] for row in first}


@pytest.mark.parametrize("threshold", [0.5, 0.15])
def test_only_continuations_scored_at_or_below_the_threshold_are_harmless(
    tiny_language_model: LanguageModel, samples: pa.Table, workspace: Workspace, threshold: float
) -> None:
    """What was not scored is not known to be harmless; what says nothing is no text."""
    rows = choose(
        tiny_language_model,
        samples,
        workspace,
        for_calibration=True,
        n_continuations=1000,
        toxic_threshold=threshold,
    )
    continuations, scores = make_continuations("selection")
    expected = {
        f"{score['prompt_id']}:{score['sample_index']}"
        for text, score in zip(continuations.to_pylist(), scores.to_pylist(), strict=True)
        if score["toxicity_probability"] is not None
        and score["toxicity_probability"] <= threshold
        and text["token_ids"]
    }
    found = {row["text_id"]: row for row in rows if row["origin"] == "continuation"}
    assert set(found) == expected
    texts = {f"{row['prompt_id']}:{row['sample_index']}": row for row in continuations.to_pylist()}
    for name, row in found.items():
        assert row["token_ids"] == [*texts[name]["prompt_token_ids"], *texts[name]["token_ids"]]


def test_only_texts_labelled_non_toxic_are_harmless(
    tiny_language_model: LanguageModel, samples: pa.Table, workspace: Workspace
) -> None:
    """Without a label it is not known; tokens are those of the text as the model reads it."""
    described = {row["sample_id"]: row for row in samples.to_pylist()}
    found: set[str] = set()
    for flag in (True, False):
        rows = choose(
            tiny_language_model, samples, workspace, for_calibration=flag, n_labelled=1000
        )
        for row in rows:
            if row["origin"] == "labelled":
                sample = described[row["text_id"]]
                assert sample["is_toxic"] is False
                expected = encode_text(tiny_language_model, sample["text"], 128)
                assert (row["token_ids"], row["n_context"]) == expected
                assert row["text_id"] not in found
                found.add(row["text_id"])
    assert found == {name for name, row in described.items() if row["is_toxic"] is False}


def test_shares_of_uses_and_numbers_are_as_asked_for(
    tiny_language_model: LanguageModel, samples: pa.Table, workspace: Workspace
) -> None:
    """About a third for the budget; at most so many of each origin, counted in the facts."""
    rows = choose(tiny_language_model, samples, workspace, for_calibration=True, n_labelled=0)
    assert workspace.facts == {"n_continuation": 30, "n_labelled": 0}
    assert len(rows) == 30
    rows = choose(
        tiny_language_model,
        samples,
        workspace,
        for_calibration=True,
        n_continuations=1000,
        n_labelled=1000,
    )
    share = sum(row["use"] == "budget" for row in rows) / len(rows)
    assert 0.15 < share < 0.5
    assert {row["use"] for row in rows} == {"fisher", "budget"}
    rows = choose(tiny_language_model, samples, workspace, for_calibration=False)
    assert {row["use"] for row in rows} == {"evaluation"}


def test_the_end_of_a_long_continuation_is_kept(
    tiny_language_model: LanguageModel, samples: pa.Table, workspace: Workspace
) -> None:
    """It is what the model wrote; of a labelled text the beginning."""
    texts_of = dict(zip(samples["sample_id"].to_pylist(), samples["text"].to_pylist(), strict=True))
    rows = choose(tiny_language_model, samples, workspace, for_calibration=True, max_tokens=5)
    assert all(2 <= len(row["token_ids"]) <= 5 for row in rows)
    for row in rows:
        if row["origin"] == "continuation":
            assert 9 not in row["token_ids"]  # the prompt's first token
        else:
            text = texts_of[row["text_id"]]
            assert row["token_ids"] == encode_text(tiny_language_model, text, 5).token_ids


def test_a_prompt_is_context_even_where_its_beginning_is_cut(
    tiny_language_model: LanguageModel, samples: pa.Table, tmp_path: Path
) -> None:
    """Three tokens of prompt and nine said; of ten tokens one of the prompt is left."""
    for max_tokens, n_context in ((64, 3), (10, 1)):
        workspace = Workspace(tmp_path / str(max_tokens))
        workspace.folder.mkdir()
        rows = choose(
            tiny_language_model, samples, workspace, for_calibration=True, max_tokens=max_tokens
        )
        found = {row["n_context"] for row in rows if row["origin"] == "continuation"}
        assert found == {n_context}
        assert {row["n_context"] for row in rows if row["origin"] == "labelled"} == {1}
