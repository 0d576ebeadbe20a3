"""Runs and releases for a terminal: what is essential fits 80 columns."""

from __future__ import annotations

from typing import Any

from eigenshift.reporting.history_tables import tabulate_releases, tabulate_runs

RUN: dict[str, Any] = {
    "run_id": "20261127T201239.485Z-24bdd9",
    "command": "reproduce",
    "status": "promoted",
    "started": "2026-11-27 20:12",
    "seconds": 3599,
    "model_id": "meta-llama/Llama-2-7b-chat-hf",
    "toxicity_base": 0.3077,
    "toxicity_patched": 0.0507,
    "perplexity_base": 5.39,
    "perplexity_patched": 5.37,
    "scorer_auroc": 0.999,
    "release": "20261127T200227.279491Z-9ffc20",
    "is_in_force": True,
}
RELEASE: dict[str, Any] = {
    "model_id": "meta-llama/Llama-2-7b-chat-hf",
    "version": "20261127T200227.279491Z-9ffc20",
    "action": "rollback",
    "released": "2026-11-27 20:02",
    "released_by": "somebody@a-host-with-a-long-name",
    "run_id": "20261127T195844.679Z-562220",
    "patch": "unpatched model",
    "reason": "back to the unpatched model",
    "is_in_force": True,
}


def test_essential_columns_fit_a_terminal() -> None:
    """With ids as long as ours, two letters between columns."""
    (releases,) = tabulate_releases([RELEASE]).values()
    for columns in (tabulate_runs([RUN]), releases):
        widths = [
            max(map(len, (column.name, *column.cells))) for column in columns if column.is_essential
        ]
        assert sum(widths) + 2 * (len(widths) - 1) <= 80


def test_a_run_is_told_by_what_changed_and_when() -> None:
    """Of a run without a result there is nothing to tell."""
    failed = dict.fromkeys(RUN) | {
        "run_id": "a",
        "command": "tune",
        "status": "failed",
        "started": "2026-01-02 03:04",
        "model_id": "demo",
        "is_in_force": False,
    }
    found = {column.name: column.cells for column in tabulate_runs([RUN, failed])}
    assert found["toxicity"] == ("30.8% -> 5.1%", "")
    assert found["perplexity"] == ("5.39 -> 5.37", "")
    assert found["started (UTC)"] == ("27 Nov 20:12", "02 Jan 03:04")
    assert found["took"] == ("59m 59s", "")
    assert found[""] == ("*", "")


def test_the_model_comes_first_where_there_are_several() -> None:
    """What does not fit is left out from the end."""
    other = RUN | {"model_id": "demo"}
    one, two = tabulate_runs([RUN]), tabulate_runs([RUN, other])
    assert [column.name for column in one[6:8]] == ["toxicity", "model"]
    assert [column.name for column in two[6:8]] == ["model", "toxicity"]


def test_releases_are_told_model_by_model() -> None:
    """The words of the gate are too long for a table; a roll-back's are not."""
    promoted = RELEASE | {"model_id": "demo", "action": "promote", "reason": "x" * 61}
    found = tabulate_releases([RELEASE, promoted, RELEASE])
    assert {model: len(columns[0].cells) for model, columns in found.items()} == {
        "meta-llama/Llama-2-7b-chat-hf": 2,
        "demo": 1,
    }
    assert found["demo"][-1].cells == ("",)
