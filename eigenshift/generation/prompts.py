"""Choose the prompts to continue, in two parts that share no prompt.

Reads samples of role "prompts"; writes `selection-*.parquet` and `evaluation-*.parquet`
(`schemas.PROMPTS`), one file per generation shard. Components are chosen on the first part and
judged on the second, so no number of the evaluation was fitted to its own prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.errors import DatasetError
from eigenshift.generation.stages import PromptInputs, PromptKey
from eigenshift.settings import PromptSettings
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

MIN_PROMPTS_PER_PART = 2


class Part(str, Enum):
    """Which decision a prompt is used for."""

    selection = "selection"
    evaluation = "evaluation"


def choose_prompts(samples: pa.Table, settings: PromptSettings, workspace: Workspace) -> None:
    """Draw the two parts from all prompt samples and write them in shards.

    The draw orders prompts by a digest of seed and prompt id: it does not depend on the order of
    the files. With fewer prompts than asked for, both parts shrink in proportion, and
    `workspace.facts` says so.

    Args:
        samples: `schemas.SAMPLES` rows of role "prompts".
        settings: Sizes of the parts, toxicity bound, seed.
        workspace: Receives the shards.

    Raises:
        DatasetError: Too few prompts pass the toxicity bound.
    """
    rows = [row for row in samples.to_pylist() if _is_wanted(row, settings.min_toxicity)]
    rows.sort(key=lambda row: _draw_key(settings.seed, row["sample_id"]))
    n_wanted = settings.n_selection + settings.n_evaluation
    n_selection = settings.n_selection
    if len(rows) < n_wanted:
        n_selection = len(rows) * settings.n_selection // n_wanted
    parts = {
        Part.selection: rows[:n_selection],
        Part.evaluation: rows[n_selection : n_selection + settings.n_evaluation],
    }
    for part, chosen in parts.items():
        if len(chosen) < MIN_PROMPTS_PER_PART:
            raise DatasetError(
                f"prompts ({part.value}): expected at least {MIN_PROMPTS_PER_PART}, found "
                f"{len(chosen)} among {len(samples)} prompt samples. Add prompts, lower "
                "prompts.min_toxicity, or change prompts.n_selection and prompts.n_evaluation."
            )
        _write_part(part, chosen, settings.prompts_per_shard, workspace)
    workspace.facts = {
        "n_available": len(rows),
        "n_selection": len(parts[Part.selection]),
        "n_evaluation": len(parts[Part.evaluation]),
        "is_short": len(rows) < n_wanted,
    }


def _is_wanted(row: dict[str, Any], min_toxicity: float | None) -> bool:
    if min_toxicity is None:
        return True
    return row["toxicity"] is not None and row["toxicity"] > min_toxicity


def _draw_key(seed: int, sample_id: str) -> str:
    return hashlib.sha256(f"{seed}:{sample_id}".encode()).hexdigest()


def describe_prompts(samples: Sequence[Mapping[str, Any]], part: Part) -> list[dict[str, Any]]:
    """Rows of `schemas.PROMPTS` of some samples.

    Args:
        samples: `schemas.SAMPLES` rows.
        part: Which decision they are for.
    """
    return [
        {
            "prompt_id": row["sample_id"],
            "part": part.value,
            "dataset": row["dataset"],
            "language": row["language"],
            "toxicity": row["toxicity"],
            "prompt": row["text"],
        }
        for row in samples
    ]


def _write_part(
    part: Part, chosen: list[dict[str, Any]], prompts_per_shard: int, workspace: Workspace
) -> None:
    for shard, first in enumerate(range(0, len(chosen), prompts_per_shard)):
        rows = describe_prompts(chosen[first : first + prompts_per_shard], part)
        workspace.write_rows(f"{part.value}-{shard:05d}.parquet", rows, schemas.PROMPTS)


def carry_out(inputs: PromptInputs, key: PromptKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `choose_prompts`."""
    found = bench.artifacts.open_all(inputs.samples)
    samples = pa.concat_tables(item.read_tables(tables.SAMPLES.prefix) for item in found)
    choose_prompts(samples, key.prompts, workspace)
