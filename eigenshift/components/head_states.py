"""States at the head where a toxic word is about to be generated, and matched ones where not.

Reads continuations (or labelled texts in their form), scores and toxic positions; writes
`head_states.parquet` (`schemas.HEAD_STATES`). Non-toxic positions are matched on step index and
language and begin words too, or the comparison would find position and kind of word instead of
toxicity (docs/how-it-works.md, section 2). Late steps, of which long texts have many, are matched
by band.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.stages import HeadStateInputs, HeadStateKey
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.token_spans import find_step, find_token_spans
from eigenshift.toxicity.word_spans import list_words

CONTEXT_TOKENS = 24


EXACT_STEPS = 32
BAND_GROWTH = 1.25
"""Beyond the first steps a band holds a quarter more of them each time."""

TextKey = tuple[str, int]
Cell = tuple[str, int]


def collect_head_states(
    language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    positions: pa.Table,
    key: HeadStateKey,
    *,
    tokens_per_batch: int,
    workspace: Workspace,
) -> None:
    """Choose positions and record what enters the head there.

    Args:
        language_model: The unpatched model.
        continuations: `schemas.CONTINUATIONS` rows of the selection prompts.
        scores: `schemas.SCORES` rows.
        positions: `schemas.TOXIC_POSITIONS` rows.
        key: How many non-toxic positions per toxic one; the seed of the draw. Continuations at or
            below its threshold are non-toxic. Those with a toxic position give no non-toxic ones,
            unless toxic words are marked: then every word outside the marks is non-toxic.
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
    if len(toxic) < key.min_toxic_positions:
        raise ComponentError(
            f"selection prompts: expected at least {key.min_toxic_positions} positions where "
            f"a toxic word is generated, found {len(toxic)}. The model hardly generates toxicity "
            "on these prompts: raise prompts.n_selection, choose prompts with "
            "prompts.min_toxicity, take states from labelled text (components.states_from), or "
            "lower components.min_toxic_positions."
        )
    nontoxic_keys = list_nontoxic(scores, toxic, key)
    matched, n_short = match_positions(language_model.tokenizer, by_key, toxic, nontoxic_keys, key)
    wanted = [(key, step, True) for key, step in toxic] + [
        (key, step, False) for key, step in matched
    ]
    states = compute_states(
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
    workspace.write_rows(tables.HEAD_STATES.file, rows, schemas.HEAD_STATES)
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


def list_nontoxic(
    scores: pa.Table,
    toxic: Sequence[tuple[TextKey, int]],
    settings: HeadStateKey,
) -> list[TextKey]:
    """Continuations whose words are non-toxic, but for those at toxic positions."""
    with_toxic = {key for key, _ in toxic}
    probabilities = {
        (row["prompt_id"], row["sample_index"]): row["toxicity_probability"]
        for row in scores.to_pylist()
        if row["toxicity_probability"] is not None
    }
    harmless = [key for key, value in probabilities.items() if value <= settings.toxic_threshold]
    if settings.is_marked:  # a marked text is marked whole
        return [*harmless, *sorted(with_toxic - set(harmless))]
    return [key for key in harmless if key not in with_toxic]


def permute_labels(states: pa.Table, seed: int) -> pa.Table:
    """Shuffle which positions are called toxic, among those of the same step and language.

    A control: whatever is then found is noise, with the numbers and the matching of real labels.

    Args:
        states: `schemas.HEAD_STATES` rows.
        seed: Of the shuffle.
    """
    labels = states["is_toxic"].to_numpy(zero_copy_only=False).astype(bool)
    cells: dict[tuple[str, int], list[int]] = defaultdict(list)
    steps, languages = states["step"].to_pylist(), states["language"].to_pylist()
    for place, cell in enumerate(zip(languages, steps, strict=True)):
        cells[cell].append(place)
    generator = np.random.default_rng(seed)
    permuted = labels.copy()
    for _, places in sorted(cells.items()):
        permuted[places] = generator.permutation(labels[places])
    column = states.schema.get_field_index("is_toxic")
    return states.set_column(
        column, states.schema.field("is_toxic"), pa.array(permuted, pa.bool_())
    )


def match_positions(
    tokenizer: Any,
    continuations: dict[TextKey, dict[str, Any]],
    toxic: Sequence[tuple[TextKey, int]],
    nontoxic_keys: Sequence[TextKey],
    settings: HeadStateKey,
) -> tuple[list[tuple[TextKey, int]], int]:
    """Draw non-toxic word beginnings with the same languages and (bands of) steps as the toxic.

    Returns:
        The positions, and how many were wanted but not to be had.
    """
    wanted = Counter(
        {
            cell: count * settings.nontoxic_per_toxic
            for cell, count in Counter(
                (continuations[key]["language"], find_band(step)) for key, step in toxic
            ).items()
        }
    )
    candidates: dict[Cell, list[tuple[TextKey, int]]] = defaultdict(list)
    taken = set(toxic)
    for key in nontoxic_keys:
        row = continuations[key]
        for step in _find_word_steps(tokenizer, row):
            cell = (row["language"], find_band(step))
            if cell in wanted and (key, step) not in taken:
                candidates[cell].append((key, step))
    matched: list[tuple[TextKey, int]] = []
    n_short = 0
    for cell, count in sorted(wanted.items()):
        pool = sorted(candidates[cell], key=lambda place: _draw_key(settings.seed, place))
        matched.extend(pool[:count])
        n_short += max(0, count - len(pool))
    return sorted(matched), n_short


def find_band(step: int) -> int:
    """Steps that are matched with each other: early ones by themselves, later ones in bands."""
    if step < EXACT_STEPS:
        return step
    return EXACT_STEPS + int(math.log(step / EXACT_STEPS, BAND_GROWTH))


def _find_word_steps(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    """Steps at which a word of the continuation begins."""
    if not row["token_ids"]:
        return []
    spans = find_token_spans(tokenizer, row["token_ids"])
    return sorted({find_step(spans, start) for start, _ in list_words(row["continuation"])})


def _draw_key(seed: int, place: tuple[TextKey, int]) -> str:
    (prompt_id, sample_index), step = place
    return hashlib.sha256(f"{seed}:{prompt_id}:{sample_index}:{step}".encode()).hexdigest()


def compute_states(
    language_model: LanguageModel,
    continuations: dict[TextKey, dict[str, Any]],
    wanted: Sequence[tuple[TextKey, int]],
    tokens_per_batch: int,
) -> list[npt.NDArray[np.float32]]:
    """Teacher-forced states in the order of `wanted`, each of shape (hidden,).

    The state about to generate the token of a step is at the token before it.

    Args:
        language_model: The model as it runs now.
        continuations: `schemas.CONTINUATIONS` rows by prompt and sample.
        wanted: Texts and steps.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
    """
    steps_of: dict[TextKey, list[int]] = defaultdict(list)
    for key, step in wanted:
        steps_of[key].append(step)
    keys = sorted(steps_of)
    sequences = [
        continuations[key]["prompt_token_ids"]
        + continuations[key]["token_ids"][: max(steps_of[key])]
        for key in keys
    ]
    found: dict[tuple[TextKey, int], npt.NDArray[np.float32]] = {}
    for place, states in iterate_head_states(language_model, sequences, tokens_per_batch):
        key = keys[place]
        n_prompt = len(continuations[key]["prompt_token_ids"])
        for step in steps_of[key]:
            found[key, step] = states[n_prompt + step - 1].float().cpu().numpy()
    return [found[place] for place in wanted]


def compute_states_again(
    language_model: LanguageModel,
    states: pa.Table,
    continuations: pa.Table,
    tokens_per_batch: int,
) -> npt.NDArray[np.float32]:
    """States at recorded positions by the model as it runs now, shape (position, hidden).

    Args:
        language_model: The model, perhaps changed.
        states: `schemas.HEAD_STATES` rows.
        continuations: `schemas.CONTINUATIONS` rows that they are of.
        tokens_per_batch: Token budget of a forward pass; does not change the result.
    """
    texts = {(row["prompt_id"], row["sample_index"]): row for row in continuations.to_pylist()}
    wanted = [
        ((row["prompt_id"], row["sample_index"]), row["step"])
        for row in states.select(["prompt_id", "sample_index", "step"]).to_pylist()
    ]
    return np.stack(compute_states(language_model, texts, wanted, tokens_per_batch))


def carry_out(
    inputs: HeadStateInputs, key: HeadStateKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `collect_head_states`."""
    read = bench.artifacts.read_shards
    with use_model(bench.model, bench.execution) as language_model:
        collect_head_states(
            language_model,
            read(inputs.continuations, tables.CONTINUATIONS.file),
            read(inputs.scores, tables.SCORES.file),
            read(inputs.positions, tables.TOXIC_POSITIONS.file),
            key,
            tokens_per_batch=bench.execution.tokens_per_batch,
            workspace=workspace,
        )
