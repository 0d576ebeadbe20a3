"""The benchmark for GPUs: its cases run on a CPU when small, and it claims only what it found."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.benchmarks.bench_gpu import CaseResult, judge, run_cases, run_in_process, tabulate
from tests.benchmarks.gpu_cases import SMALL, SVD, list_cases
from tests.benchmarks.page import tabulate as tabulate_page

PLACE = "decomposition 400 x 32"
LARGEST_DIFFERENCES = {"neurons": 1e-12, PLACE: 1e-4, "decomposition 500 x 48": 1e-4}
"""Sorting gives the same AUROCs; torch.linalg.svd works in float32."""


@pytest.fixture(scope="module")
def found() -> dict[str, CaseResult]:
    """What every case tells at small sizes on the CPU."""
    results = {}
    for name, measure in list_cases(SMALL).items():
        told = list(measure(torch.device("cpu")))
        results[name] = CaseResult({key: value for key, value in told if key != "begin"})
    return results


def test_every_case_runs_and_agrees_with_its_peer(found: dict[str, CaseResult]) -> None:
    """Figures are positive; where two ways give the same numbers, they do."""
    for name, result in found.items():
        for key, value in result.figures.items():
            if key == "largest_difference":
                assert value <= LARGEST_DIFFERENCES[name]
            elif key == "share_equal_to_base":
                assert 0 <= value <= 1
            else:
                assert value >= 0 if key.endswith("peak_gb") else value > 0, f"{name}: {key}"
    assert found["screening"].figures["n_foretold"] == SMALL.n_trials


def test_whole_results_have_a_bar_for_each_target(found: dict[str, CaseResult]) -> None:
    """Extraction, arms, foretelling, and each head."""
    targets = [bar.limit for bar in judge(found, SMALL)]
    assert targets == [0.9, 2.5, 1.5, 10, 10]
    shown = [row["what"] for row in tabulate(found)]
    assert "extraction: peak memory of shard, GB" in shown
    assert "generation: tokens/s of transformers' `generate`" in shown


def test_what_was_not_measured_has_neither_bar_nor_figure() -> None:
    """Nothing is made up for a case that did not run."""
    nothing = {name: CaseResult(reason="not begun") for name in list_cases(SMALL)}
    assert judge(nothing, SMALL) == []
    assert tabulate(nothing) == []


def test_a_stopped_svd_gives_a_bound_that_counts_only_where_it_is_enough() -> None:
    """Eleven times as long and still not done meets the bar; twice as long says nothing."""
    nothing = {name: CaseResult() for name in list_cases(SMALL)}

    def stop(seconds: float) -> dict[str, CaseResult]:
        stopped = CaseResult({"ours_seconds": 2.0}, SVD, reason="stopped", bound_seconds=seconds)
        return {**nothing, PLACE: stopped}

    (bar,) = judge(stop(22.0), SMALL)
    assert (bar.found, bar.is_met) == (11.0, True)
    assert "lower bound" in bar.what
    assert judge(stop(4.0), SMALL) == []
    assert tabulate(stop(4.0))[-1]["found"] == 4.0


def test_no_case_is_begun_when_the_time_is_spent() -> None:
    """A case is given what is left; later ones are named with the reason."""
    clock = iter([0.0, 10.0, 75.0, 75.0])
    given: list[tuple[str, float]] = []

    def run(name: str, seconds: float) -> CaseResult:
        given.append((name, seconds))
        return CaseResult()

    results = run_cases(["a", "b", "c"], run, 100.0, lambda: next(clock))
    assert given == [("a", 90.0)]
    assert [name for name, result in results.items() if result.reason] == ["b", "c"]


@pytest.mark.parametrize(
    ("end", "reason"),
    [("while True: pass", "stopped"), ("raise SystemExit(3)", "exit code 3"), ("", None)],
    ids=["stopped", "failed", "done"],
)
def test_a_case_keeps_what_it_told_before_its_end(end: str, reason: str | None) -> None:
    """Figures come line by line; a library's own words are not ours."""
    told = ['["begin", "first"]', "noise", '["seconds", 1.5]', '["begin", "second"]']
    script = "".join(f"print({line!r}, flush=True)\n" for line in told) + end
    result = run_in_process([sys.executable, "-c", script], 2.0)
    assert result.figures == {"seconds": 1.5}
    assert result.variant == "second"
    assert (result.bound_seconds is not None) == (reason == "stopped")
    assert reason is None if result.reason is None else str(reason) in result.reason


def test_the_page_shows_figures_without_a_bar_and_what_is_missing() -> None:
    """Beside bars: rows without one, reasons, and the device."""
    result: dict[str, Any] = {
        "measured_at": "2026-01-02T03:04+00:00",
        "bars": [{"what": "a", "bar": "at least 1", "found": 2.0, "is_met": True}],
        "figures": [{"what": "b", "found": 3.5}],
        "not_measured": ["c: not begun"],
        "device": {"name": "a card", "memory_gb": 80},
        "machine_at_the_end": {
            "processor": "p",
            "n_cores": 1,
            "memory_gib": 2,
            "python": "3",
            "load_average": [0.0],
        },
    }
    lines = tabulate_page(result).splitlines()
    assert "| a | at least 1 | 2 | met |" in lines
    assert "| b | - | 3.5 | |" in lines
    assert "- Not measured: c: not begun." in lines
    assert "Device: name a card, memory_gb 80." in lines
