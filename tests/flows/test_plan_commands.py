"""`eigenshift plan` as a person runs it: no server, no model, no run."""

from __future__ import annotations

import json

import pytest

from flows.command_line import main
from tests.support.small_store import build_small_store


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as leaving:
        main(["plan", *words])
    printed = capsys.readouterr()
    return int(leaving.value.code or 0), printed.out, printed.err


def test_a_plan_without_anything_says_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    """The number by hand is `test_power.py`'s."""
    code, out, _ = run(capsys, "--reduction", "0.5", "--continuations", "10")
    assert code == 0
    assert "53 prompts" in out
    assert "assumed; --run measures both" in out


def test_a_plan_from_a_stored_run_and_of_settings(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Base rate and correlation of the run; what the preset's own sizes can show."""
    small = build_small_store(f"{tmp_path}/store")
    words = ("--store", small.url, "--run", "latest", "--preset", "demo", "--json")
    code, out, _ = run(capsys, *words)
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    assert small.run_id in found["basis"]["origin"]
    assert found["detectable"]["n_prompts"] == 150
    assert found["continuations"] == [5, 10, 25]


def test_a_run_and_assumptions_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One of them would be ignored."""
    code, _, err = run(capsys, "--run", "latest", "--base-rate", "0.2")
    assert code == 2
    assert "either --run" in err
