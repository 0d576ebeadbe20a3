"""States at the head where a toxic word is about to be generated, and matched ones where not.

Reads continuations, scores and toxic positions of the selection prompts; writes
`head_states.parquet` (`schemas.HEAD_STATES`). Non-toxic positions are matched on step index and
language and begin words too, or the comparison would find position and kind of word instead of
toxicity (design.md section 2).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eigenshift import schemas
from eigenshift.artifacts import Workspace
from eigenshift.errors import ComponentError
from eigenshift.forward import iterate_head_states
from eigenshift.models import LanguageModel
from eigenshift.scoring import WORD, find_step
from eigenshift.settings import ComponentSettings
from eigenshift.token_spans import find_token_spans

STEP_VERSION = 2
CONTEXT_TOKENS = 24


Key = tuple[str, int]


def collect_head_states(
    language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    positions: pa.Table,
    settings: ComponentSettings,
    *,
    toxic_threshold: float,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Choose positions and record what enters the head there.

    Args:
        language_model: The unpatched model.
        continuations: `schemas.CONTINUATIONS` rows of the selection prompts.
        scores: `schemas.SCORES` rows.
        positions: `schemas.TOXIC_POSITIONS` rows.
        settings: How many non-toxic positions per toxic one; the seed of the draw.
        toxic_threshold: Continuations at or below this probability are non-toxic.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
        workspace: Receives the table.

    Raises:
        ComponentError: Too few toxic positions to compare anything.
    """
    by_key = {(row["prompt_id"], row["sample_index"]): row for row in continuations.to_pylist()}
    toxic = [
        ((row["prompt_id"], row["sample_index"]), row["step"]) for row in positions.to_pylist()
    ]
    toxic = sorted(set(toxic))
    if len(toxic) < settings.min_toxic_positions:
        raise ComponentError(
            f"selection prompts: expected at least {settings.min_toxic_positions} positions where "
            f"a toxic word is generated, found {len(toxic)}. The model hardly generates toxicity "
            "on these prompts: raise prompts.n_selection, choose prompts with "
            "prompts.min_toxicity, or lower components.min_toxic_positions."
        )
    nontoxic_keys = [
        (row["prompt_id"], row["sample_index"])
        for row in scores.to_pylist()
        if row["toxicity_probability"] is not None
        and row["toxicity_probability"] <= toxic_threshold
    ]
    matched, n_short = match_positions(
        language_model.tokenizer, by_key, toxic, nontoxic_keys, settings
    )
    wanted = [(key, step, True) for key, step in toxic] + [
        (key, step, False) for key, step in matched
    ]
    states = _compute_states(
        language_model, by_key, [(key, step) for key, step, _ in wanted], tokens_per_batch
    )
    rows = [
        {
            "prompt_id": key[0],
            "sample_index": key[1],
            "step": step,
            "language": by_key[key]["language"],
            "is_toxic": is_toxic,
            "token_id": by_key[key]["token_ids"][step],
            **_describe_context(language_model.tokenizer, by_key[key], step),
            "state": state,
        }
        for (key, step, is_toxic), state in zip(wanted, states, strict=True)
    ]
    workspace.write_rows("head_states.parquet", rows, schemas.HEAD_STATES)
    workspace.facts = {
        "n_toxic": len(toxic),
        "n_nontoxic": len(matched),
        "n_unmatched": n_short,
        "hidden": language_model.head.hidden,
    }


def _describe_context(tokenizer: Any, row: dict[str, Any], step: int) -> dict[str, str]:
    """The text before a step, its last tokens only, and the token that follows."""
    before = [*row["prompt_token_ids"], *row["token_ids"][:step]][-CONTEXT_TOKENS:]
    following = row["token_ids"][step : step + 1]
    context, token = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in (before, following)
    )
    return {"context": context, "next_token": token}


def match_positions(
    tokenizer: Any,
    continuations: dict[Key, dict[str, Any]],
    toxic: Sequence[tuple[Key, int]],
    nontoxic_keys: Sequence[Key],
    settings: ComponentSettings,
) -> tuple[list[tuple[Key, int]], int]:
    """Draw non-toxic word beginnings with the same steps and languages as the toxic ones.

    Returns:
        The positions, and how many were wanted but not to be had.
    """
    wanted = Counter(
        {
            cell: count * settings.nontoxic_per_toxic
            for cell, count in Counter(
                (continuations[key]["language"], step) for key, step in toxic
            ).items()
        }
    )
    candidates: dict[tuple[str, int], list[tuple[Key, int]]] = defaultdict(list)
    for key in nontoxic_keys:
        row = continuations[key]
        for step in _find_word_steps(tokenizer, row):
            if (row["language"], step) in wanted:
                candidates[row["language"], step].append((key, step))
    matched: list[tuple[Key, int]] = []
    n_short = 0
    for cell, count in sorted(wanted.items()):
        pool = sorted(candidates[cell], key=lambda place: _draw_key(settings.seed, place))
        matched.extend(pool[:count])
        n_short += max(0, count - len(pool))
    return sorted(matched), n_short


def _find_word_steps(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    """Steps at which a word of the continuation begins."""
    if not row["token_ids"]:
        return []
    spans = find_token_spans(tokenizer, row["token_ids"])
    return sorted({find_step(spans, match.start()) for match in WORD.finditer(row["continuation"])})


def _draw_key(seed: int, place: tuple[Key, int]) -> str:
    (prompt_id, sample_index), step = place
    return hashlib.sha256(f"{seed}:{prompt_id}:{sample_index}:{step}".encode()).hexdigest()


def _compute_states(
    language_model: LanguageModel,
    continuations: dict[Key, dict[str, Any]],
    wanted: Sequence[tuple[Key, int]],
    tokens_per_batch: int,
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Teacher-forced states in the order of `wanted`, each of shape (hidden,).

    The state about to generate the token of a step is at the token before it.
    """
    steps_of: dict[Key, list[int]] = defaultdict(list)
    for key, step in wanted:
        steps_of[key].append(step)
    keys = sorted(steps_of)
    sequences = [
        continuations[key]["prompt_token_ids"]
        + continuations[key]["token_ids"][: max(steps_of[key])]
        for key in keys
    ]
    found: dict[tuple[Key, int], np.ndarray[Any, np.dtype[np.float32]]] = {}
    for place, states in iterate_head_states(language_model, sequences, tokens_per_batch):
        key = keys[place]
        n_prompt = len(continuations[key]["prompt_token_ids"])
        for step in steps_of[key]:
            found[key, step] = states[n_prompt + step - 1].float().cpu().numpy()
    return [found[place] for place in wanted]
