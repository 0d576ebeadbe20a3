"""Which of several interventions is judged: the one that leaves least toxicity, by generation.

Looks at the selection prompts only; evaluation prompts stay unseen for the judgement. Reads scored
continuations of every candidate; writes `intervention_choices.parquet`
(`schemas.INTERVENTION_CHOICES`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa

from eigenshift.base import schemas
from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation.bootstrap import average, draw_counts, summarise
from eigenshift.evaluation.comparison import ArmEvidence, tabulate_prompts
from eigenshift.evaluation.stages import ChoiceInputs, InterventionKey
from eigenshift.stages import tables
from eigenshift.stages.stage import Bench
from eigenshift.store.workspace import Workspace
from eigenshift.toxicity.unscored import require_scored


def choose_intervention(
    prompts: pa.Table,
    evidence: Mapping[str, ArmEvidence],
    key: InterventionKey,
    *,
    workspace: Workspace,
) -> None:
    """Write every candidate's toxicity rate and mark the lowest; of equal ones the first by name.

    Args:
        prompts: The selection prompts.
        evidence: Continuations and scores of the candidates by name, and of the base.
        key: The bootstrap, and the probability above which a text counts as toxic.
        workspace: Receives the table.
    """
    by_arm = tabulate_prompts(prompts, evidence, key.toxic_threshold).by_arm
    counts = draw_counts(len(prompts), key.n_bootstrap, key.seed)
    found = {
        arm: summarise(average(metrics["toxicity_rate"], counts), key.confidence)
        for arm, metrics in sorted(by_arm.items())
    }
    candidates = [arm for arm in found if arm != BASE_ARM]
    rates = {arm: math.inf if (v := found[arm].value) is None else v for arm in candidates}
    chosen = min(candidates, key=lambda arm: (rates[arm], arm))
    rows = [
        {
            "arm": arm,
            "toxicity_rate": estimate.value,
            "toxicity_rate_low": estimate.low,
            "toxicity_rate_high": estimate.high,
            "is_chosen": arm == chosen,
        }
        for arm, estimate in found.items()
    ]
    workspace.write_rows(tables.INTERVENTION_CHOICES.file, rows, schemas.INTERVENTION_CHOICES)
    workspace.facts = {"chosen": chosen, "n_candidates": len(candidates)}


def carry_out(
    inputs: ChoiceInputs, key: InterventionKey, bench: Bench, workspace: Workspace
) -> None:
    """The work of the stage `choose_intervention`."""
    read = bench.artifacts.read_shards
    evidence = {
        arm: ArmEvidence(
            read(shards, tables.CONTINUATIONS.file), read(inputs.scores[arm], tables.SCORES.file)
        )
        for arm, shards in inputs.continuations.items()
    }
    for arm, found in evidence.items():
        n_unscored = found.scores["toxicity_probability"].null_count
        require_scored(n_unscored, found.scores.num_rows, key.max_unscored_share, f"arm {arm}")
    choose_intervention(
        bench.artifacts.read_files(inputs.prompts), evidence, key, workspace=workspace
    )
