"""Harmless text that a budget is measured on, by kind: what one kind saves no other pays.

Neutral sentences alone are gamed: an edit that costs 5% on encyclopedia sentences may cost 70% on
the harmless half of the texts it was made of (docs/decisions/0049-cost-in-domain.md). So the cost
of every arm is the largest rise of the loss over the kinds. Reads samples and harmless texts;
writes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import pyarrow as pa

from eigenshift.base.errors import ComponentError
from eigenshift.components.text_halves import split_neutral
from eigenshift.model.encoding import encode_text
from eigenshift.model.loading import LanguageModel

NEUTRAL = "neutral"
Tokens = Sequence[int]


@dataclass(frozen=True)
class BudgetTexts:
    """Token sequences of at least two tokens by kind of text, each kind in an order of its own.

    Attributes:
        by_kind: `NEUTRAL`, and the origins of harmless in-domain texts as far as there are any.
        contexts: Of each text of a kind, how many tokens at its start are read and not predicted;
            kinds that are not named have one each.
    """

    by_kind: Mapping[str, Sequence[Tokens]]
    contexts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def sequences(self) -> list[Tokens]:
        """All of them, kind after kind."""
        return [sequence for found in self.by_kind.values() for sequence in found]

    @property
    def n_contexts(self) -> list[int]:
        """Tokens of each of `sequences` that are read and not predicted."""
        return [
            count
            for kind, found in self.by_kind.items()
            for count in self.contexts.get(kind, [1] * len(found))
        ]

    def take(self, kind: str) -> BudgetTexts:
        """Those of one kind."""
        contexts = {kind: self.contexts[kind]} if kind in self.contexts else {}
        return BudgetTexts({kind: self.by_kind[kind]}, contexts)

    def limit(self, max_tokens: int) -> BudgetTexts:
        """The first of each kind, as many as have at most so many tokens, at least one."""
        by_kind = {kind: _take_first(found, max_tokens) for kind, found in self.by_kind.items()}
        contexts = {kind: counts[: len(by_kind[kind])] for kind, counts in self.contexts.items()}
        return BudgetTexts(by_kind, contexts)

    def list_rows(self) -> list[slice]:
        """Where the sequences of each kind lie among all."""
        ends = list(accumulate(map(len, self.by_kind.values()), initial=0))
        return [slice(first, after) for first, after in pairwise(ends)]


def gather_budget_texts(
    language_model: LanguageModel,
    neutral_texts: pa.Table,
    harmless_texts: pa.Table,
    max_tokens: int,
    *,
    use: str,
) -> BudgetTexts:
    """Encode the calibration half of neutral texts and the harmless texts set apart for a use.

    Args:
        language_model: Whose tokenizer is used.
        neutral_texts: `schemas.SAMPLES` rows.
        harmless_texts: `schemas.HARMLESS_TEXTS` rows.
        max_tokens: Longer neutral texts are truncated.
        use: Which of the harmless texts, "fisher" or "budget". Neutral texts serve both.

    Raises:
        ComponentError: No neutral text for calibration has two tokens.
    """
    rows = split_neutral(neutral_texts, for_calibration=True).select(["sample_id", "text"])
    in_order = sorted(rows.to_pylist(), key=lambda row: _order(row["sample_id"]))
    encoded = (encode_text(language_model, row["text"], max_tokens) for row in in_order)
    neutral = [text for text in encoded if len(text.token_ids) > text.n_context]
    if not neutral:
        raise ComponentError(
            f"neutral texts: expected some for calibration (half of them), found none with two "
            f"tokens among {len(neutral_texts)}. Add neutral texts."
        )
    by_kind: dict[str, list[Tokens]] = {NEUTRAL: [text.token_ids for text in neutral]}
    contexts = {NEUTRAL: [text.n_context for text in neutral]}
    columns = ["text_id", "origin", "use", "token_ids", "n_context"]
    found = harmless_texts.select(columns).to_pylist()
    for row in sorted(found, key=lambda row: (row["origin"], _order(row["text_id"]))):
        if row["use"] == use and len(row["token_ids"]) > row["n_context"]:
            by_kind.setdefault(row["origin"], []).append(row["token_ids"])
            contexts.setdefault(row["origin"], []).append(row["n_context"])
    return BudgetTexts(by_kind, contexts)


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _take_first(sequences: Sequence[Tokens], max_tokens: int) -> list[Tokens]:
    taken: list[Tokens] = []
    n_tokens = 0
    for sequence in sequences:
        if taken and n_tokens + len(sequence) > max_tokens:
            break
        taken.append(sequence)
        n_tokens += len(sequence)
    return taken
