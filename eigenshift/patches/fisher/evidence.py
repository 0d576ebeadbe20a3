"""What the search for Fisher components reads: toxic positions, and harmless text for the metric.

Positions are those of the head states, so labels that were shuffled for a control run are shuffled
here too. Pure functions of tables.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base.errors import ComponentError
from eigenshift.components.budget_texts import BudgetTexts, Tokens
from eigenshift.components.calibration import ToxicStates
from eigenshift.components.table import gather_toxic_states
from eigenshift.model.loading import LanguageModel


@dataclass(frozen=True)
class ToxicTexts:
    """Continuations with toxic positions, up to the last of them.

    Attributes:
        sequences: Tokens before the last toxic one: prompt and continuation.
        positions: Of each sequence, where a toxic token is about to be generated.
        rows: Of each sequence, the rows of `states` that are these positions.
        states: The same positions as states at the head, with the toxic tokens and weights.
        prompts: The prompt of each row of `states`, numbered from 0, shape (position,).
    """

    sequences: list[Tokens]
    positions: list[list[int]]
    rows: list[list[int]]
    states: ToxicStates
    prompts: Tensor


@dataclass(frozen=True)
class FisherEvidence:
    """All that decides the components.

    Attributes:
        toxic: Where toxicity is about to be generated.
        metric_texts: Harmless text whose Fisher matrix is the metric.
        budget_texts: Harmless text on which the cost is measured.
    """

    toxic: ToxicTexts
    metric_texts: BudgetTexts
    budget_texts: BudgetTexts


def gather_toxic_texts(
    language_model: LanguageModel, head_states: pa.Table, continuations: pa.Table
) -> ToxicTexts:
    """Toxic positions with the text before them.

    Args:
        language_model: The unpatched model, for its head.
        head_states: `schemas.HEAD_STATES` rows.
        continuations: `schemas.CONTINUATIONS` rows that they are of.

    Raises:
        ComponentError: No token sets toxic positions apart, or a continuation is missing.
    """
    states = gather_toxic_states(head_states, language_model.head_weight, in_context=True)
    rows_of: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    columns = ["prompt_id", "sample_index", "step"]
    places = head_states.filter(head_states["is_toxic"]).select(columns).to_pylist()
    for row, place in enumerate(places):
        rows_of[place["prompt_id"], place["sample_index"]].append((place["step"], row))
    texts = {
        (row["prompt_id"], row["sample_index"]): row
        for row in continuations.select(
            ["prompt_id", "sample_index", "prompt_token_ids", "token_ids"]
        ).to_pylist()
        if (row["prompt_id"], row["sample_index"]) in rows_of
    }
    if len(texts) < len(rows_of):
        raise ComponentError(
            f"head states: expected the continuations of all {len(rows_of)} texts with toxic "
            f"positions, found {len(texts)}. The artifacts are of different runs; start it again."
        )
    sequences: list[Tokens] = []
    positions: list[list[int]] = []
    rows: list[list[int]] = []
    for key in sorted(rows_of):
        prompt, tokens = texts[key]["prompt_token_ids"], texts[key]["token_ids"]
        steps = sorted(rows_of[key])
        sequences.append([*prompt, *tokens[: steps[-1][0]]])
        positions.append([len(prompt) + step - 1 for step, _ in steps])
        rows.append([row for _, row in steps])
    numbers: dict[str, int] = {}
    prompts = [numbers.setdefault(place["prompt_id"], len(numbers)) for place in places]
    return ToxicTexts(sequences, positions, rows, states, torch.tensor(prompts))
