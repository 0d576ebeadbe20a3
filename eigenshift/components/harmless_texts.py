"""Harmless text of the domain: the base's own non-toxic continuations, and labelled texts.

An edit that suppresses toxicity is made of text like this, so this is where it does most harm, and
where neutral sentences do not look (docs/decisions/0049-cost-in-domain.md). Reads continuations
with scores, and samples; writes `harmless_texts.parquet` (`schemas.HARMLESS_TEXTS`). Texts for
calibration (two thirds shape the Fisher metric, one third the budget) and those for evaluation are
never the same: the first come from the selection prompts and one half of the samples, the others
from the evaluation prompts and the other half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.components.stages import HarmlessInputs, HarmlessKey
from eigenshift.components.text_halves import is_calibration_text
from eigenshift.model.encoding import encode_text
from eigenshift.model.loading import LanguageModel, use_model
from eigenshift.model.tokens import limit_tokens
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace

CONTINUATION, LABELLED = "continuation", "labelled"
FISHER, BUDGET, EVALUATION = "fisher", "budget", "evaluation"
BUDGET_SHARE = 3
"""One text in so many is for the budget."""


def choose_harmless_texts(
    language_model: LanguageModel,
    continuations: pa.Table,
    scores: pa.Table,
    samples: pa.Table,
    key: HarmlessKey,
    workspace: Workspace,
) -> None:
    """Draw texts of both kinds, encode them and say what each is for.

    Args:
        language_model: Whose tokenizer is used.
        continuations: `schemas.CONTINUATIONS` rows of the base.
        scores: `schemas.SCORES` rows of the same.
        samples: `schemas.SAMPLES` rows; those that are not labelled non-toxic are left out.
        key: How many, what for, and up to which score a continuation is harmless.
        workspace: Receives the table; its facts hold how many there are of each kind.
    """
    rows = _draw_continuations(language_model, continuations, scores, key)
    rows += _draw_labelled(language_model, samples, key)
    workspace.write_rows(tables.HARMLESS_TEXTS.file, rows, schemas.HARMLESS_TEXTS)
    workspace.facts = {
        f"n_{origin}": sum(row["origin"] == origin for row in rows)
        for origin in (CONTINUATION, LABELLED)
    }


def _draw_continuations(
    language_model: LanguageModel, continuations: pa.Table, scores: pa.Table, key: HarmlessKey
) -> list[dict[str, Any]]:
    """Prompt and continuation, of which only the continuation is harmless: prompts invite toxicity.

    The prompt's own words are no cost: a model that finds insults less likely finds toxic prompts
    less likely, and should.
    """
    harmless = {
        (row["prompt_id"], row["sample_index"])
        for row in scores.to_pylist()
        if row["toxicity_probability"] is not None
        and row["toxicity_probability"] <= key.toxic_threshold
    }
    n_tokens = limit_tokens(language_model.model, key.max_tokens)
    rows = [
        {
            "text_id": f"{row['prompt_id']}:{row['sample_index']}",
            "origin": CONTINUATION,
            "language": row["language"],
            # the end is what the model wrote
            "token_ids": [*row["prompt_token_ids"], *row["token_ids"]][-n_tokens:],
            "n_context": _count_context(row, n_tokens),
            "group": row["prompt_id"],
        }
        for row in continuations.to_pylist()
        if (row["prompt_id"], row["sample_index"]) in harmless and row["token_ids"]
    ]
    return _draw(rows, key.n_continuations, key)


def _count_context(row: Mapping[str, Any], n_tokens: int) -> int:
    """Tokens of the prompt that are left where only the last so many are read, at least one."""
    return max(1, min(len(row["prompt_token_ids"]), n_tokens - len(row["token_ids"])))


def _draw_labelled(
    language_model: LanguageModel, samples: pa.Table, key: HarmlessKey
) -> list[dict[str, Any]]:
    """Texts labelled non-toxic, of the half that is for this use."""
    columns = ["sample_id", "language", "is_toxic", "text"]
    rows = [
        {"text_id": row["sample_id"], "origin": LABELLED, "group": row["sample_id"], **row}
        for row in samples.select(columns).to_pylist()
        if row["is_toxic"] is False and is_calibration_text(row["sample_id"]) is key.for_calibration
    ]
    drawn = _draw(rows, key.n_labelled, key)
    for row in drawn:
        found = encode_text(language_model, row["text"], key.max_tokens)
        row["token_ids"], row["n_context"] = found
    return drawn


def _draw(
    rows: Sequence[Mapping[str, Any]], n_texts: int, key: HarmlessKey
) -> list[dict[str, Any]]:
    """Some of the rows, the same whatever their order, each with its use.

    All continuations of a prompt have one use.
    """

    def place(name: str) -> bytes:
        return hashlib.sha256(f"harmless:{key.seed}:{name}".encode()).digest()

    drawn = sorted(rows, key=lambda row: place(row["text_id"]))[:n_texts]
    return [{**row, "use": _find_use(place(row["group"]), key)} for row in drawn]


def _find_use(digest: bytes, key: HarmlessKey) -> str:
    if not key.for_calibration:
        return EVALUATION
    return BUDGET if digest[-1] % BUDGET_SHARE == 0 else FISHER


def carry_out(inputs: HarmlessInputs, key: HarmlessKey, bench: Bench, workspace: Workspace) -> None:
    """The work of the stage `choose_harmless_texts`."""
    read = bench.artifacts.read_shards
    with use_model(bench.model, bench.execution) as language_model:
        choose_harmless_texts(
            language_model,
            read(inputs.continuations, tables.CONTINUATIONS.file),
            read(inputs.scores, tables.SCORES.file),
            bench.artifacts.read_files(inputs.samples),
            key,
            workspace,
        )
