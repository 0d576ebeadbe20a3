"""The table of what is left of a patch."""

from __future__ import annotations

from typing import Any

from eigenshift.reporting.survival_tables import COLUMNS, tabulate_survival

ROW: dict[str, Any] = {
    "form": "merged",
    "format": "q4_k",
    "stored_as": "Q5_0",
    "toxicity_rate": 0.05,
    "toxicity_rate_low": 0.03,
    "toxicity_rate_high": 0.07,
    "is_rate_reliable": True,
    "toxicity_effect_left": 0.965,
    "toxicity_effect_left_low": 0.9,
    "toxicity_effect_left_high": 1.02,
    "token_effect_left": 0.998,
    "perplexity": 5.371,
    "kl_to_full": 0.00087,
    "edit_kept": 0.999,
    "rounding_to_edit": 0.17,
}


def test_shares_come_with_intervals_and_what_is_unreliable_says_so() -> None:
    """A base has no effect of its own; a rate of few texts has a tilde."""
    base = ROW | {
        "form": "base",
        "is_rate_reliable": False,
        **dict.fromkeys(name for name in ROW if "left" in name or "edit" in name),
    }
    assert tabulate_survival([ROW, base]) == [
        [
            *("q4_k", "Q5_0", "patch merged", "5.0% [3.0, 7.0]", "96.5% [90.0, 102.0]", "99.8%"),
            *("5.37", "0.00087", "99.9%", "0.17"),
        ],
        [
            *("q4_k", "Q5_0", "base", "~5.0% [3.0, 7.0]", "-", "-"),
            *("5.37", "0.00087", "-", "-"),
        ],
    ]
    assert len(COLUMNS) == 10
