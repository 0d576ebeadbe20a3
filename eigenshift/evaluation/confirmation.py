"""Whether what short continuations show holds for long ones.

Twenty tokens can be gamed: a model may be harmless for a sentence and go on as before. Reads long
continuations of some evaluation prompts, by base and patch, and their scores; writes
`confirmations.parquet` (`schemas.CONFIRMATIONS`). What the gate makes of them is `gate.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.evaluation.agreement import read_scores
from eigenshift.evaluation.comparison import ArmEvidence, compare_toxicity, tabulate_prompts
from eigenshift.evaluation.degeneration import compare_degeneration, tabulate_degeneration
from eigenshift.evaluation.slices import find_slices
from eigenshift.evaluation.stages import LongComparisonInputs, LongComparisonKey
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace


def confirm_at_length(
    prompts: pa.Table,
    evidence: Mapping[str, ArmEvidence],
    key: LongComparisonKey,
    workspace: Workspace,
) -> None:
    """Write toxicity and degeneration of all arms, and their paired differences to the base.

    Args:
        prompts: `schemas.PROMPTS` rows; those that were not continued are left out.
        evidence: Arm -> its long continuations and scores; must hold "base".
        key: Intervals, thresholds, and how long they are at most.
        workspace: Receives the table.

    Raises:
        EvaluationError: An arm lacks prompts that another has.
    """
    continued = {
        prompt_id
        for found in evidence.values()
        for prompt_id in found.continuations["prompt_id"].to_pylist()
    }
    chosen = pa.array([name in continued for name in prompts["prompt_id"].to_pylist()], pa.bool_())
    table = tabulate_prompts(prompts.filter(chosen), evidence, key.toxic_threshold)
    ids = [row["prompt_id"] for row in table.prompts]
    degenerate = {
        arm: tabulate_degeneration(found.continuations, ids, key.evaluation)
        for arm, found in evidence.items()
    }
    rows: list[dict[str, Any]] = []
    for name, members in find_slices(table.prompts, key.toxic_threshold).items():
        rows += compare_toxicity(table, members, name, key.evaluation, key.scorer)
        rows += compare_degeneration(degenerate, members, name, key.evaluation)
    rows = [{**row, "n_tokens": key.n_tokens} for row in rows]
    workspace.write_rows(tables.CONFIRMATIONS.file, rows, schemas.CONFIRMATIONS)
    workspace.facts = {"arms": sorted(evidence), "n_prompts": len(ids)}


def carry_out(
    inputs: LongComparisonInputs, key: LongComparisonKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `confirm_at_length`."""
    judged = read_scores(bench.artifacts, inputs.judged, key)
    evidence = {
        arm: ArmEvidence(
            bench.artifacts.read_shards(shards, tables.CONTINUATIONS.file), judged.scores[arm]
        )
        for arm, shards in inputs.continuations.items()
    }
    confirm_at_length(bench.artifacts.read_files(inputs.prompts), evidence, key, workspace)
