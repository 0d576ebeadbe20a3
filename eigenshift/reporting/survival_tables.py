"""What is left of a patch in GGUF formats: a table from `schemas.SURVIVAL` rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from eigenshift.ledger.runs import StageSummary
from eigenshift.reporting.outcomes import format_estimate
from eigenshift.settings import Form

COLUMNS = (
    *("format", "stored as", "served", "toxicity rate", "effect left", "of tokens"),
    *("perplexity", "KL", "edit kept", "rounding"),
)
NAMES = {
    Form.base.value: "base",
    Form.merged.value: "patch merged",
    Form.lora.value: "patch as LoRA",
}
EXPLANATION = (
    "Effect left: share of the patch's fall in toxicity rate, against the base rounded alike; of "
    "tokens: the same of the probability of toxic tokens at toxic positions. Rates are foretold "
    "from what the same model said unrounded (~: too few toxic texts count to rely on it); "
    "intervals are over prompts. KL: to the same model unrounded, nats a token. Edit kept: share "
    "of the patch's change of the weights that is left along it; rounding: all that rounding "
    "changes in these weights, relative to that change (Frobenius). llama-quantize stores a head "
    "as Q6_K or Q8_0, whatever the rest is, unless told otherwise (--output-tensor-type)."
)


def tabulate_survival(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per format and form, as `COLUMNS`.

    Args:
        rows: `schemas.SURVIVAL` rows.
    """
    return [
        [
            row["format"],
            row["stored_as"] or "-",
            NAMES[row["form"]],
            _format_interval(row, "toxicity_rate"),
            _format_interval(row, "toxicity_effect_left"),
            _format_share(row["token_effect_left"]),
            f"{row['perplexity']:.2f}",
            f"{row['kl_to_full']:.5f}",
            _format_share(row["edit_kept"]),
            "-" if row["rounding_to_edit"] is None else f"{row['rounding_to_edit']:.2f}",
        ]
        for row in rows
    ]


def _format_interval(row: Mapping[str, Any], column: str) -> str:
    ends = {"value": "", "low": "_low", "high": "_high"}
    text = format_estimate({name: row[f"{column}{end}"] for name, end in ends.items()}, "percent")
    return text if row["is_rate_reliable"] or text == "-" else f"~{text}"


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


class Survival(BaseModel):
    """What is left of the patch of a run.

    Attributes:
        about: Id of the run.
        judged: Its arm whose patch it is.
        survival: `schemas.SURVIVAL` rows.
    """

    run_id: str
    store: str
    about: str
    judged: str
    stages: list[StageSummary]
    survival: list[dict[str, Any]]

    @property
    def rows(self) -> list[list[str]]:
        """The table, as `COLUMNS`."""
        return tabulate_survival(self.survival)

    def as_contract(self) -> dict[str, Any]:
        """For `--json`."""
        return {**self.model_dump(mode="json"), "status": "finished"}
