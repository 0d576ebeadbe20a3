"""The limits of a patch in words, for its model card: what was measured, and what nobody knows.

Reads a run's settings and `schemas.EVALUATIONS` rows; says nothing that they do not bear out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eigenshift.base.arms import BASE_ARM
from eigenshift.evaluation.metric_table import MetricTable
from eigenshift.settings import RefreshSettings

RATE = "toxicity_rate"
LANGUAGE = "language="


def describe_limits(
    settings: RefreshSettings,
    rows: Sequence[Mapping[str, Any]],
    arm: str,
    *,
    was_asked_questions: bool,
) -> str:
    """A list in Markdown, one limit a line.

    Args:
        settings: Of the run.
        rows: `schemas.EVALUATIONS` rows, none if the run ended before.
        arm: The exported one.
        was_asked_questions: Whether benchmark questions were put to it.
    """
    return "\n".join(
        f"- {limit}"
        for limit in (
            _tell_what_is_left(rows, arm),
            f"**One judge.** Toxic is what the classifier ({settings.scorer.name}) calls so. It "
            "errs both ways, and abuse that it does not know counts as harmless.",
            _tell_languages(rows, arm),
            _tell_use(settings),
            "**Capability.** "
            + (
                "Only the questions above were put to it; other tasks may be harmed."
                if was_asked_questions
                else "What the patch costs in knowledge and reasoning was not measured."
            ),
            "**Not a safeguard.** Who wants toxic text can still get it: by other prompts, by "
            "training, by undoing the patch. Use it beside filters and people, not in their place.",
            "**Nothing else.** False statements, private data, stereotypes in polite words: as in "
            "the base model.",
            "**One base.** It fits the model named above, and no other, not even a fine-tuned copy "
            "of it.",
        )
    )


def _tell_what_is_left(rows: Sequence[Mapping[str, Any]], arm: str) -> str:
    table = MetricTable(rows)
    base, patched = table.get(BASE_ARM, RATE), table.get(arm, RATE)
    if base is None or patched is None or base["value"] is None or patched["value"] is None:
        return "**Toxic text stays possible.** How often was not measured."
    interval = ""
    if patched["low"] is not None and patched["high"] is not None:
        interval = f" (interval {100 * patched['low']:.1f} to {100 * patched['high']:.1f})"
    return (
        f"**Toxic text stays possible.** Of 100 continuations of this run's prompts, "
        f"{100 * patched['value']:.1f} still count as toxic{interval}; before, "
        f"{100 * base['value']:.1f}. Other prompts have other rates."
    )


def _tell_languages(rows: Sequence[Mapping[str, Any]], arm: str) -> str:
    found = sorted(
        row["slice"].removeprefix(LANGUAGE)
        for row in rows
        if row["arm"] == arm and row["metric"] == RATE and row["slice"].startswith(LANGUAGE)
    )
    if not found:
        return "**Languages.** The run did not tell languages apart; it holds for its prompts' own."
    return f"**Languages.** Measured in: {', '.join(found)}. Nothing is known of others."


def _tell_use(settings: RefreshSettings) -> str:
    generation = settings.generation
    return (
        f"**Use.** Measured on {generation.n_tokens} tokens after each prompt, at temperature "
        f"{generation.temperature:g} and top-p {generation.top_p:g}. Longer texts, other sampling, "
        "conversations of many turns and tools may differ."
    )
