"""Labelled texts in the form of continuations, so that the model can be watched reading them.

Where the model's own generations have few toxic words, states can be taken while it reads labelled
text (teacher-forced). Reads samples; writes `continuations.parquet` (the text as if generated from
nothing), `scores.parquet` (the label as a probability of 0 or 1) and `labelled_spans.parquet`
(where the source marks toxic words). Which positions are toxic is `toxic_positions.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.errors import ComponentError
from eigenshift.components.stages import LabelledTextInputs, LabelledTextKey
from eigenshift.model.encoding import find_context
from eigenshift.model.loading import LanguageModel, require_known_tokens, use_model
from eigenshift.model.tokens import count_positions
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.token_spans import REPLACEMENT

MAX_TOKENS = 256
SCORER_NAME = "label"


def encode_labelled_text(
    language_model: LanguageModel,
    samples: pa.Table,
    key: LabelledTextKey,
    workspace: Workspace,
) -> None:
    """Choose labelled texts, encode them, and write them as continuations of nothing.

    A text that the tokenizer does not give back as it was (characters lost or changed) is left out,
    since offsets would not fit.

    Args:
        language_model: Whose tokenizer is used.
        samples: `schemas.SAMPLES` rows; those without a label are left out.
        key: How many texts, and the seed of the draw.
        workspace: Receives the tables.

    Raises:
        ComponentError: The tokenizer has no token to begin with, or no text of a kind is left.
    """
    context = _require_context(language_model)
    chosen = choose_texts(samples, key.max_labelled_texts, key.seed)
    encoded = [
        (row, tokens)
        for row in chosen
        if (tokens := encode_faithfully(language_model, row["text"], len(context))) is not None
    ]
    counts = {flag: sum(row["is_toxic"] is flag for row, _ in encoded) for flag in (True, False)}
    if not counts[True]:
        raise ComponentError(
            f"labelled texts: expected toxic ones, found none among {len(samples)} that the "
            "tokenizer gives back as they were. Add a labelled source, or set "
            "components.states_from: generations."
        )
    rows = [_describe_text(language_model, row, context, tokens) for row, tokens in encoded]
    workspace.write_rows(tables.CONTINUATIONS.file, rows, schemas.CONTINUATIONS)
    scores = [
        {
            "prompt_id": row["sample_id"],
            "sample_index": 0,
            "scorer": SCORER_NAME,
            "toxicity_probability": float(row["is_toxic"]),
            "status": "scored",
        }
        for row, _ in encoded
    ]
    workspace.write_rows(tables.SCORES.file, scores, schemas.SCORES)
    spans = [span for row, _ in encoded for span in list_spans(row)]
    workspace.write_rows(tables.LABELLED_SPANS.file, spans, schemas.LABELLED_SPANS)
    workspace.facts = {
        "n_toxic": counts[True],
        "n_nontoxic": counts[False],
        "n_not_given_back": len(chosen) - len(encoded),
        "n_spans": len(spans),
    }


def choose_texts(samples: pa.Table, n_texts: int, seed: int) -> list[dict[str, Any]]:
    """Draw toxic and non-toxic texts in equal numbers, the rest of one kind if the other is short.

    The draw depends on ids and seed only, not on the order of the samples.
    """
    columns = ["sample_id", "language", "is_toxic", "text", "attributes"]
    rows = [row for row in samples.select(columns).to_pylist() if row["is_toxic"] is not None]
    rows.sort(key=lambda row: hashlib.sha256(f"{seed}:{row['sample_id']}".encode()).digest())
    toxic = [row for row in rows if row["is_toxic"]]
    nontoxic = [row for row in rows if not row["is_toxic"]]
    n_toxic = min(len(toxic), max(n_texts // 2, n_texts - len(nontoxic)))
    return toxic[:n_toxic] + nontoxic[: n_texts - n_toxic]


def encode_faithfully(
    language_model: LanguageModel, text: str, n_context: int = 1
) -> list[int] | None:
    """Tokens of a text (or of its beginning) that decode to it; None if they do not.

    Behind so many tokens of context they fit into the model's positions.

    Raises:
        ModelError: A token is unknown to the model.
    """
    tokenizer = language_model.tokenizer
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    n_positions = count_positions(language_model.model) or MAX_TOKENS + n_context
    tokens = tokens[: min(MAX_TOKENS, n_positions - n_context)]
    require_known_tokens(language_model, tokens)
    return tokens if tokens and text.startswith(_decode(tokenizer, tokens)) else None


def list_spans(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `schemas.LABELLED_SPANS` of a sample; none if its source marks no words."""
    spans = json.loads(row["attributes"] or "{}").get("spans")
    for start, end in spans if isinstance(spans, list) else []:
        yield {"prompt_id": row["sample_id"], "start": start, "end": end}


def _require_context(language_model: LanguageModel) -> list[int]:
    """The tokens before the text: what the first word is predicted from."""
    context = find_context(language_model)
    if context:
        return context
    raise ComponentError(
        f"{language_model.id}: expected a token for the beginning (or end) of text, found none, so "
        "nothing comes before a text's first word. Set components.states_from: generations."
    )


def _describe_text(
    language_model: LanguageModel, row: Mapping[str, Any], context: list[int], tokens: Sequence[int]
) -> dict[str, Any]:
    return {
        "prompt_id": row["sample_id"],
        "sample_index": 0,
        "language": row["language"],
        "prompt": "",
        "continuation": _decode(language_model.tokenizer, tokens),
        "prompt_token_ids": context,
        "token_ids": list(tokens),
    }


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text of some tokens, without the half of a character at the end."""
    text: str = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text.rstrip(REPLACEMENT)


def carry_out(
    inputs: LabelledTextInputs, key: LabelledTextKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `encode_labelled_text`."""
    samples = bench.artifacts.read_files(inputs.samples)
    with use_model(bench.model, bench.execution) as language_model:
        encode_labelled_text(language_model, samples, key, workspace)
