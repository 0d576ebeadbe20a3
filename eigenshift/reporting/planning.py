"""`eigenshift plan`: how many prompts, with how many continuations, show which effect.

Reads the base arm of a stored run where one is named, through the audit views; writes nothing. The
power of the test is `evaluation/power.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from eigenshift.audit import open_audit
from eigenshift.audit.statements import quote
from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation.power import (
    ASSUMED_BASE_RATE,
    ASSUMED_CORRELATION,
    Demand,
    Variation,
    count_prompts,
    estimate_variation,
    find_detectable,
)
from eigenshift.ledger.runs import choose_run
from eigenshift.settings import RefreshSettings, parse_settings
from eigenshift.store.storage import Store

MEASURED_COMMANDS = ("refresh", "compare")
REDUCTIONS = (0.1, 0.2, 0.3, 0.5, 0.8)
CONTINUATIONS = (5, 10, 25)


class Basis(BaseModel):
    """Where a plan's numbers come from.

    Attributes:
        base_rate: Mean over prompts of the share of toxic continuations.
        correlation: Intra-prompt correlation.
        origin: In words.
    """

    base_rate: float
    correlation: float
    origin: str

    @property
    def variation(self) -> Variation:
        """For `power.py`."""
        return Variation(self.base_rate, self.correlation)


class Plan(BaseModel):
    """Prompts by reduction and continuations per prompt.

    Attributes:
        prompts: One row per reduction: the reduction, then prompts for each of `continuations`.
        detectable: What the settings' own sizes can show, if there are settings: prompts,
            continuations, the smallest reduction (None: not even all of it).
    """

    basis: Basis
    power: float
    confidence: float
    continuations: tuple[int, ...]
    prompts: list[dict[str, Any]]
    detectable: dict[str, float | int | None] | None = None

    @property
    def columns(self) -> list[str]:
        """Headings of the table."""
        return ["fall of the toxicity rate", *(f"{k} continuations" for k in self.continuations)]

    @property
    def rows(self) -> list[list[str]]:
        """One row per reduction."""
        return [
            [f"{row['reduction']:.0%}", *(f"{n:,} prompts" for n in row["n_prompts"])]
            for row in self.prompts
        ]

    @property
    def notes(self) -> list[str]:
        """What the table rests on."""
        basis = self.basis
        notes = [
            f"Base rate {basis.base_rate:.1%}, correlation of continuations of one prompt "
            f"{basis.correlation:.2f} ({basis.origin}).",
            f"So many prompts tell the fall from chance in {self.power:.0%} of runs: the paired "
            f"{self.confidence:.0%} interval over prompts leaves out 0.",
        ]
        if self.detectable is not None:
            least = self.detectable["reduction"]
            found = "not even when all of it is gone" if least is None else f"from {least:.0%} on"
            notes.append(
                f"These settings, {self.detectable['n_prompts']} prompts with "
                f"{self.detectable['n_continuations']} continuations each: {found}."
            )
        return notes

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return self.model_dump(mode="json")


def assume_basis(base_rate: float | None, correlation: float | None) -> Basis:
    """A basis from numbers given, and the usual ones where none is."""
    given = [
        name
        for name, value in (("base rate", base_rate), ("correlation", correlation))
        if value is not None
    ]
    return Basis(
        base_rate=ASSUMED_BASE_RATE if base_rate is None else base_rate,
        correlation=ASSUMED_CORRELATION if correlation is None else correlation,
        origin=f"{' and '.join(given)} given" if given else "assumed; --run measures both",
    )


def measure_basis(store_url: str, run_id: str | None) -> Basis:
    """What the base arm of a stored run says of its model on its prompts.

    Args:
        store_url: Root URL of the store.
        run_id: A refresh or comparison; by default the latest that ended.

    Raises:
        SettingsError: There is no such run.
        EvaluationError: It has too few prompts, or nothing toxic.
    """
    record = choose_run(Store(store_url), run_id, MEASURED_COMMANDS)
    threshold = parse_settings(record.settings, "run settings").scorer.toxic_threshold
    with open_audit(store_url) as session:
        rows = session.query(
            f"SELECT count(*) AS n, count(*) FILTER (toxicity_probability > {threshold}) AS toxic "
            f"FROM generations WHERE run_id = {quote(record.run_id)} AND arm = {quote(BASE_ARM)} "
            "AND part = 'evaluation' AND status = 'scored' GROUP BY prompt_id ORDER BY prompt_id"
        ).to_pylist()
    found = estimate_variation([row["toxic"] for row in rows], [row["n"] for row in rows])
    return Basis(**asdict(found), origin=f"{len(rows)} prompts of run {record.run_id}")


def make_plan(
    basis: Basis,
    reductions: Sequence[float],
    continuations: Sequence[int],
    demand: Demand,
    settings: RefreshSettings | None = None,
) -> Plan:
    """Count prompts for every reduction and number of continuations.

    Args:
        basis: What is known of the model.
        reductions: Relative falls of the toxicity rate, 0 to 1.
        continuations: Of each prompt.
        demand: Of the test.
        settings: A run to come, whose own sizes are judged too.

    Raises:
        EvaluationError: A number is out of its range.
    """
    variation = basis.variation
    return Plan(
        basis=basis,
        power=demand.power,
        confidence=demand.confidence,
        continuations=tuple(continuations),
        prompts=[
            {
                "reduction": reduction,
                "n_prompts": [
                    count_prompts(variation, reduction, k, demand) for k in continuations
                ],
            }
            for reduction in reductions
        ],
        detectable=None if settings is None else _judge_sizes(variation, settings, demand),
    )


def _judge_sizes(
    variation: Variation, settings: RefreshSettings, demand: Demand
) -> dict[str, float | int | None]:
    n_prompts, k = settings.prompts.n_evaluation, settings.generation.n_samples
    return {
        "n_prompts": n_prompts,
        "n_continuations": k,
        "reduction": find_detectable(variation, n_prompts, k, demand),
    }
