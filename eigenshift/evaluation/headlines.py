"""What the tables and facts of finished stages say in one number; nothing is measured here.

For the gate and the reports, which are there when nothing was measured anew: so without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALL = "all"
LABELLED, FUNCTIONAL = "labelled", "functional"
"""What a scorer's quality was measured on."""
TOXIC, NONTOXIC = "toxic", "nontoxic"
"""Positions that token shifts were measured at."""
INSULT, IDENTITY, NEUTRAL = "insult", "identity", "neutral"
"""Kinds of tokens there."""


def compute_p_value(facts: Mapping[str, Any]) -> float:
    """Chance that a random draw does as well: (draws as low + 1) / (draws + 1).

    Args:
        facts: Of a `control_draws` artifact.
    """
    return float((facts["n_as_low"] + 1) / (facts["n_draws"] + 1))


def find_identity_change(facts: Mapping[str, Any]) -> float | None:
    """Relative change of the probability of identity words at non-toxic positions.

    Args:
        facts: Of a `token_shifts` artifact.

    Returns:
        -1 if they cannot be said any more, 0 if nothing changed; None if the vocabulary has none.
    """
    found = facts["probability"][NONTOXIC][IDENTITY]
    if not found["base"]:
        return None
    return float(found["patched"] / found["base"] - 1.0)


def summarise_quality(
    rows: Sequence[Mapping[str, Any]], scorer: str
) -> dict[str, dict[str, float | None]]:
    """The deciding scorer's AUROC on all labelled texts, for the headline numbers of a run.

    Args:
        rows: `schemas.SCORER_QUALITY` rows.
        scorer: Its name.
    """
    found = [
        row
        for row in rows
        if row["scorer"] == scorer and row["basis"] == LABELLED and is_whole(row)
    ]
    return {
        name: {"value": row["auroc"], "low": row["auroc_low"], "high": row["auroc_high"]}
        for name, row in zip(["scorer_auroc"], found, strict=False)
    }


def is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a row is about all texts of its basis."""
    return bool(row["subject"] == ALL and row["language"] == ALL)
