"""Prompts as they are continued, and continuations as rows of a table.

Reads prompts (`schemas.PROMPTS`); writes `continuations.parquet` (`schemas.CONTINUATIONS`), whoever
draws: our own loop (`continuations.py`) or an engine (`served.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.model.encoding import encode_prompt
from eigenshift.model.loading import LanguageModel
from eigenshift.settings import SamplingSettings
from eigenshift.stages import tables
from eigenshift.store.workspace import Workspace


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and the tokens that are continued."""

    prompt_id: str
    language: str
    text: str
    token_ids: list[int]


def encode_prompts(
    language_model: LanguageModel, prompts: pa.Table, settings: SamplingSettings
) -> list[EncodedPrompt]:
    """Tokenise prompts, keeping the last `max_prompt_tokens` and room for the continuation.

    Raises:
        ModelError: As `encoding.encode_prompt`.
    """
    return [
        EncodedPrompt(
            row["prompt_id"],
            row["language"],
            row["prompt"],
            encode_prompt(
                language_model,
                row["prompt"],
                settings.max_prompt_tokens,
                n_new=settings.n_tokens,
            ),
        )
        for row in prompts.select(["prompt_id", "language", "prompt"]).to_pylist()
    ]


def describe_batch(
    tokenizer: Any,
    batch: Sequence[EncodedPrompt],
    token_ids: Sequence[list[int]],
    n_samples: int,
) -> list[dict[str, Any]]:
    """Rows of some prompts' continuations.

    Args:
        tokenizer: The model's own.
        batch: The prompts.
        token_ids: What was drawn; row p * n_samples + s continues prompt p.
        n_samples: Continuations of each.
    """
    texts = tokenizer.batch_decode(
        token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [
        {
            "prompt_id": prompt.prompt_id,
            "sample_index": sample,
            "language": prompt.language,
            "prompt": prompt.text,
            "continuation": texts[place * n_samples + sample],
            "prompt_token_ids": prompt.token_ids,
            "token_ids": token_ids[place * n_samples + sample],
        }
        for place, prompt in enumerate(batch)
        for sample in range(n_samples)
    ]


def write_rows(
    rows: list[dict[str, Any]], n_prompts: int, elapsed: float, workspace: Workspace
) -> None:
    """Write an arm's table and its facts.

    Args:
        rows: Put in order here.
        n_prompts: How many were continued.
        elapsed: Seconds it took.
        workspace: Receives both.
    """
    rows.sort(key=lambda row: (row["prompt_id"], row["sample_index"]))
    workspace.write_rows(tables.CONTINUATIONS.file, rows, schemas.CONTINUATIONS)
    n_tokens = sum(len(row["token_ids"]) for row in rows)
    workspace.facts = {
        "n_prompts": n_prompts,
        "n_continuations": len(rows),
        "n_tokens": n_tokens,
        "tokens_per_second": round(n_tokens / elapsed, 1),
    }
