"""Evidence for Fisher components: texts that a tiny random model wrote itself.

A model is the truth about its own texts, so every change of it costs likelihood there, as a trained
model's does on real text. Two made-up tokens stand for toxic ones.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from eigenshift.base import schemas
from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.fisher.evidence import FisherEvidence, gather_toxic_texts
from tests.support.architectures import VOCAB, StubTokenizer, make_architecture

KINDS = ("neutral", "continuation", "labelled")
N_PROMPTS, N_WRITTEN = 60, 14
N_TOXIC = 2


class WordTokenizer(StubTokenizer):
    """Tokens have names."""

    def decode(self, token_ids: list[int]) -> str:
        """Made up."""
        return " ".join(f"t{token}" for token in token_ids)


@dataclass(frozen=True)
class Bed:
    """A model with what it wrote.

    Attributes:
        language_model: Leave it as you found it.
        states: `schemas.HEAD_STATES` rows, of the positions before every toxic token and some more.
        continuations: `schemas.CONTINUATIONS` rows.
        evidence: Made of them, with texts of three kinds for the metric and for the budget.
        toxic_tokens: Which these are.
        precise: The same model in float64.
    """

    language_model: LanguageModel
    states: pa.Table
    continuations: pa.Table
    evidence: FisherEvidence
    toxic_tokens: tuple[int, ...]
    precise: LanguageModel


@cache
def make_bed(name: str) -> Bed:
    """The bed of an architecture, the same for all tests."""
    model = make_architecture(name).requires_grad_(False)
    language_model = wrap_model(model, WordTokenizer(), model_id=name, digest=name)
    texts = write_texts(model, N_PROMPTS, N_WRITTEN + 3, seed=0)
    toxic_tokens = _choose_tokens(texts)
    rows = [
        {
            "prompt_id": f"p{place // 2:02d}",
            "sample_index": place % 2,
            "language": "en",
            "prompt_token_ids": text[:3],
            "token_ids": text[3:],
        }
        for place, text in enumerate(texts)
    ]
    continuations = pa.Table.from_pylist(rows, schema=schemas.CONTINUATIONS)
    states = _collect_states(language_model, rows, toxic_tokens)
    metric, budget = (
        BudgetTexts(
            {
                kind: write_texts(model, 16, 10 + 2 * number, seed=seed + number)
                for number, kind in enumerate(KINDS)
            }
        )
        for seed in (10, 20)
    )
    toxic = gather_toxic_texts(language_model, states, continuations)
    evidence = FisherEvidence(toxic, metric, budget)
    precise = wrap_model(deepcopy(model).double(), WordTokenizer(), model_id=name, digest=name)
    return Bed(language_model, states, continuations, evidence, toxic_tokens, precise)


@torch.inference_mode()
def write_texts(model: Any, n_texts: int, n_tokens: int, seed: int) -> list[list[int]]:
    """Texts drawn from a model, token by token, no nucleus."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB - 8, (n_texts, 1), generator=generator)
    while tokens.shape[1] < n_tokens:
        logits = model(input_ids=tokens, use_cache=False).logits[:, -1].double()
        logits[:, :3] = -torch.inf  # padding and ends are no words
        logits[:, VOCAB - 8 :] = -torch.inf  # nor are the tokens that stand for images
        drawn = torch.multinomial(logits.softmax(1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], 1)
    return tokens.tolist()


def _choose_tokens(texts: list[list[int]]) -> tuple[int, ...]:
    """Tokens that are written often enough to be studied, and not by every second text."""
    counts = np.bincount([token for text in texts for token in text[3:]], minlength=VOCAB)
    order = np.argsort(-counts, kind="stable")
    return tuple(int(token) for token in order[3 : 3 + N_TOXIC])


def _collect_states(
    language_model: LanguageModel, rows: list[dict[str, Any]], toxic_tokens: tuple[int, ...]
) -> pa.Table:
    """Every toxic position, and every third other one."""
    sequences = [[*row["prompt_token_ids"], *row["token_ids"]] for row in rows]
    states = dict(iterate_head_states(language_model, sequences, 256))
    found = [
        {
            "prompt_id": row["prompt_id"],
            "sample_index": row["sample_index"],
            "step": step,
            "language": "en",
            "is_toxic": token in toxic_tokens,
            "token_id": token,
            "context": f"before step {step}",
            "next_token": f"t{token}",
            "state": states[place][2 + step].float().numpy(),
        }
        for place, row in enumerate(rows)
        for step, token in enumerate(row["token_ids"])
        if token in toxic_tokens or (place + step) % 3 == 0
    ]
    return pa.Table.from_pylist(found, schema=schemas.HEAD_STATES)


def measure_benefit(bed: Bed, edit: ModelEdit) -> float:
    """The product's own aim: weighted mean of p' / p of the toxic tokens, by folded models.

    One text at a time, all in float64; p is held above 0.02.
    """
    from eigenshift.patches.folding import fold_edit

    model, toxic = bed.precise.model, bed.evidence.toxic
    shares = []
    for folded in ({}, fold_edit(bed.precise, edit)):
        found = torch.zeros(len(toxic.states.states), dtype=torch.float64)
        for sequence, positions, rows in zip(
            toxic.sequences, toxic.positions, toxic.rows, strict=True
        ):
            logits = call_with(model, folded, sequence)
            probabilities = torch.softmax(logits[positions], 1)
            found[rows] = probabilities[:, list(bed.toxic_tokens)].sum(1)
        shares.append(found)
    base, after = shares
    weights = toxic.states.weights.double()
    return float((weights * after / base.clamp_min(0.02)).sum())


@torch.inference_mode()
def call_with(model: Any, parameters: dict[str, Any], sequence: Any) -> torch.Tensor:
    """Logits of one text with some of a model's parameters replaced, (position, vocab).

    A head that is tied keeps the input embedding as it was.
    """
    inputs = {"input_ids": torch.tensor([list(sequence)]), "use_cache": False}
    if not parameters:
        logits: torch.Tensor = model(**inputs).logits[0]
        return logits
    found = torch.func.functional_call(model, parameters, (), inputs, tie_weights=False)
    return found.logits[0]  # type: ignore[no-any-return]


def measure_kinds(bed: Bed, edit: ModelEdit) -> dict[str, float]:
    """Rise of the loss of each kind of budget text, by the folded model, one text at a time."""
    from eigenshift.patches.folding import fold_edit

    folded = fold_edit(bed.precise, edit)

    def measure(parameters: dict[str, Any], sequences: Any) -> float:
        losses = []
        for sequence in sequences:
            logits = call_with(bed.precise.model, parameters, sequence)[:-1]
            targets = torch.tensor(list(sequence)[1:])
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        return float(torch.cat(losses).mean())

    return {
        kind: measure(folded, sequences) - measure({}, sequences)
        for kind, sequences in bed.evidence.budget_texts.by_kind.items()
    }
