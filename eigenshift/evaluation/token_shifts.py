"""Over-suppression: which tokens a patch makes rarer, and whether they are insults.

Reads the cached head states of toxic and non-toxic positions; writes `token_shifts.parquet`
(`schemas.TOKEN_SHIFTS`). The same states with and without the patch's change of the head give each
token's mean probability in closed form; nothing is generated. A patch should take probability from
insults at toxic positions and leave words for groups of people alone at all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eigenshift.base import schemas
from eigenshift.base.arrays import BoolArray, FloatArray
from eigenshift.components.head_states import compute_states_again
from eigenshift.components.table import find_toxic_tokens
from eigenshift.evaluation.headlines import IDENTITY, INSULT, NEUTRAL, NONTOXIC, TOXIC
from eigenshift.evaluation.stages import TokenShiftInputs, TokenShiftKey
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import compute_logits, run_hooked
from eigenshift.patches.patching import Patch, check_base, open_patch
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.word_lists import WordList, load_identity_terms, read_words

STATES_PER_BLOCK = 256
N_LISTED = 100
"""Tokens listed by fall, and again by ratio; identity tokens are all listed."""


@dataclass(frozen=True)
class TokenKinds:
    """What each token of the vocabulary is.

    Attributes:
        texts: Decoded tokens.
        is_insult: Shape (vocab,): generated far more at toxic positions, or in a lexicon.
        is_identity: Shape (vocab,): a neutral word for a group of people, whole in one token.
    """

    texts: Sequence[str]
    is_insult: BoolArray
    is_identity: BoolArray

    def name(self, token_id: int) -> str:
        """The kind of one token; what is both an insult and an identity word is an insult."""
        if self.is_insult[token_id]:
            return INSULT
        return IDENTITY if self.is_identity[token_id] else NEUTRAL


def measure_token_shifts(
    language_model: LanguageModel,
    patch: Patch,
    states: pa.Table,
    continuations: pa.Table,
    lexicons: Sequence[WordList],
    *,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Compare every token's mean probability before and after, at toxic and other positions.

    Args:
        language_model: The unpatched model.
        patch: Of the head, whose states are the cached ones, or of the trunk, whose own are found.
        states: `schemas.HEAD_STATES` rows.
        continuations: `schemas.CONTINUATIONS` rows that they are of.
        lexicons: Words that are insults, beside those found at toxic positions.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives the table; its facts hold the summed probability of each kind.
    """
    check_base(language_model, patch)
    kinds = find_token_kinds(language_model, states, lexicons)
    is_toxic = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    values = np.stack(states["state"].to_numpy(zero_copy_only=False)).astype(np.float32)
    own = values
    if patch.edit.changes_trunk:
        with run_hooked(language_model, patch.edit.of_trunk):
            own = compute_states_again(language_model, states, continuations, tokens_per_batch)
    rows: list[dict[str, Any]] = []
    masses: dict[str, Any] = {}
    for positions, members in ((TOXIC, is_toxic), (NONTOXIC, ~is_toxic)):
        before, after = (torch.from_numpy(found[members]) for found in (values, own))
        base = average_probabilities(language_model, before, ModelEdit())
        patched = average_probabilities(language_model, after, patch.edit)
        rows.extend(_list_tokens(positions, base, patched, kinds))
        masses[positions] = _sum_by_kind(base, patched, kinds)
    workspace.write_rows(tables.TOKEN_SHIFTS.file, rows, schemas.TOKEN_SHIFTS)
    workspace.facts = {"n_states": len(values), "probability": masses}


def find_token_kinds(
    language_model: LanguageModel, states: pa.Table, lexicons: Sequence[WordList]
) -> TokenKinds:
    """Tell insults and identity words from the rest of the vocabulary."""
    vocab = language_model.head.vocab
    tokenizer = language_model.tokenizer
    texts = [tokenizer.decode([token_id]) for token_id in range(vocab)]
    is_insult = np.array([any(text in words for words in lexicons) for text in texts], dtype=bool)
    is_insult[find_toxic_tokens(states, vocab)] = True
    terms = load_identity_terms()
    return TokenKinds(texts, is_insult, np.array([text in terms for text in texts], dtype=bool))


@torch.inference_mode()
def average_probabilities(
    language_model: LanguageModel, states: Tensor, edit: ModelEdit
) -> FloatArray:
    """Mean next-token distribution over states.

    Args:
        language_model: The unpatched model.
        states: What enters the head before an edit of the head, shape (position, hidden).
        edit: Whose changes of the head are applied.

    Returns:
        Shape (vocab,), float64; it sums to 1.
    """
    head = language_model.head_module
    total = torch.zeros(language_model.head.vocab, dtype=torch.float64, device=head.weight.device)
    for first in range(0, len(states), STATES_PER_BLOCK):
        block = states[first : first + STATES_PER_BLOCK].to(head.weight)
        logits = compute_logits(language_model, edit, block)
        total += torch.softmax(logits.float(), dim=-1).double().sum(0)
    return np.asarray((total / max(1, len(states))).cpu().numpy())


def _list_tokens(
    positions: str, base: FloatArray, patched: FloatArray, kinds: TokenKinds
) -> Iterator[dict[str, Any]]:
    """Rows of the tokens that fell most, absolutely and relatively, and of identity words."""
    order = np.argsort(patched - base, kind="stable")
    rank_of = np.empty(len(order), dtype=np.int64)
    rank_of[order] = np.arange(len(order))
    with np.errstate(divide="ignore"):
        log_ratio = np.log(patched) - np.log(base)
    is_common = base >= 1.0 / len(base)
    by_ratio = [token for token in np.argsort(log_ratio, kind="stable") if is_common[token]]
    identity = np.flatnonzero(kinds.is_identity)
    listed = {*order[:N_LISTED].tolist(), *by_ratio[:N_LISTED], *identity.tolist()}
    for token_id in sorted(map(int, listed), key=lambda token: int(rank_of[token])):
        yield {
            "positions": positions,
            "rank": int(rank_of[token_id]),
            "token_id": token_id,
            "token": kinds.texts[token_id],
            "mean_probability_base": base[token_id],
            "mean_probability_patched": patched[token_id],
            "log_ratio": log_ratio[token_id] if np.isfinite(log_ratio[token_id]) else None,
            "kind": kinds.name(token_id),
            "is_identity": bool(kinds.is_identity[token_id]),
        }


def _sum_by_kind(base: FloatArray, patched: FloatArray, kinds: TokenKinds) -> dict[str, Any]:
    """Summed probability of each kind; `identity` holds those that are insults too."""
    members = {
        INSULT: kinds.is_insult,
        IDENTITY: kinds.is_identity,
        NEUTRAL: ~(kinds.is_insult | kinds.is_identity),
    }
    return {
        kind: {
            "n_tokens": int(found.sum()),
            "base": float(base[found].sum()),
            "patched": float(patched[found].sum()),
        }
        for kind, found in members.items()
    }


def carry_out(
    inputs: TokenShiftInputs, key: TokenShiftKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `measure_token_shifts`."""
    artifacts = bench.artifacts
    lexicons = [WordList(read_words(item.settings.words or "")) for item in inputs.lexicons]
    states = artifacts.read_shards([inputs.states], tables.HEAD_STATES.file)
    patch = open_patch(artifacts.open(inputs.patch))
    with use_model(bench.model, bench.execution) as language_model:
        measure_token_shifts(
            language_model,
            patch,
            states,
            artifacts.read_shards(inputs.continuations, tables.CONTINUATIONS.file),
            lexicons,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )
