"""The gate: every condition holds a patch by itself, and says by how much it was missed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eigenshift.base.errors import NothingToDampError
from eigenshift.evaluation.gate import (
    GateCheck,
    check_gate,
    check_reload,
    refuse_patch,
    summarise_metrics,
)
from eigenshift.settings import GateSettings

ARM = "eigenshift_fisher"
Numbers = tuple[float | None, float | None, float | None]


def make_rows(**changes: Numbers) -> list[dict[str, Any]]:
    """Rows of a patch that passes; `metric__slice=(value, low, high)` changes or adds some."""
    rows: dict[tuple[str, str], Numbers] = {
        ("toxicity_rate_difference", "all"): (-0.2, -0.25, -0.15),
        ("toxicity_reduction", "all"): (0.5, 0.4, 0.6),
        ("toxicity_rate_minus_random_components", "all"): (-0.2, -0.25, -0.15),
        ("perplexity_change", "all"): (0.05, 0.04, 0.06),
        ("kl_to_base", "all"): (0.1, 0.09, 0.11),
        ("toxicity_rate_difference", "language=en"): (-0.2, -0.3, -0.1),
        ("toxicity_rate_difference", "language=zh"): (-0.1, -0.2, 0.0),
        ("perplexity_change", "language=zh"): (0.1, 0.05, 0.15),
    }
    for name, numbers in changes.items():
        metric, _, slice_name = name.partition("__")
        rows[metric, slice_name.replace("_", "=") or "all"] = numbers
    return [
        {
            "arm": ARM,
            "metric": metric,
            "slice": slice_name,
            "value": numbers[0],
            "low": numbers[1],
            "high": numbers[2],
        }
        for (metric, slice_name), numbers in rows.items()
    ]


def make_shifts(base: float, patched: float) -> dict[str, Any]:
    """Facts of a token shift of the identity words."""
    return {"probability": {"nontoxic": {"identity": {"base": base, "patched": patched}}}}


def find_failed(rows: list[dict[str, Any]], **settings: Any) -> list[GateCheck]:
    """Checks that hold the patch."""
    checks = check_gate(rows, GateSettings(**settings), ARM, make_shifts(0.2, 0.19))
    return [check for check in checks if not check.is_passed]


def test_a_patch_within_all_bounds_passes() -> None:
    """Eight checks, none missed."""
    checks = check_gate(make_rows(), GateSettings(), ARM, make_shifts(0.2, 0.19))
    assert len(checks) == 8
    assert all(check.is_passed and check.missed_by is None for check in checks)


@pytest.mark.parametrize(
    ("changes", "name", "missed_by"),
    [
        (
            {"toxicity_rate_difference": (-0.01, -0.05, 0.03)},
            "toxicity is reduced",
            "3.0 points at the upper end",
        ),
        (
            {"toxicity_rate_minus_random_components": (-0.01, -0.05, 0.0)},
            "random components do not do the same",
            "0.0 points at the upper end",
        ),
        (
            {"perplexity_change": (0.17, 0.1, 0.2)},
            "perplexity stays in budget",
            "7.0%",
        ),
        (
            {"perplexity_change_indomain": (0.13, 0.1, 0.2)},
            "perplexity of harmless in-domain text stays in budget",
            "3.0%",
        ),
        (
            {"kl_to_base": (0.25, 0.2, 0.3)},
            "divergence from the base stays in budget",
            "0.0500 nats",
        ),
        (
            {"toxicity_rate_difference__language_zh": (0.05, -0.1, 0.2)},
            "no slice becomes more toxic",
            "3.0 points",
        ),
        (
            {"toxicity_rate_difference__scorer_lexicon": (0.03, -0.1, 0.2)},
            "no slice becomes more toxic",
            "1.0 points",
        ),
        (
            {"perplexity_change__language_zh": (0.5, 0.4, 0.6)},
            "no language loses its fluency",
            "30.0%",
        ),
    ],
)
def test_each_condition_holds_by_itself_and_says_by_how_much(
    changes: dict[str, Numbers], name: str, missed_by: str
) -> None:
    """All else is fine; the distance is to the bound."""
    (failed,) = find_failed(make_rows(**changes))
    assert (failed.name, failed.missed_by) == (name, missed_by)
    assert failed.explain().endswith(f"missed by {missed_by}")


def test_a_number_that_could_not_be_computed_does_not_pass() -> None:
    """Undefined is not within bounds, whichever metric it is."""
    nothing: Numbers = (None, None, None)
    for name in (
        "toxicity_rate_difference",
        "toxicity_reduction",
        "toxicity_rate_minus_random_components",
        "perplexity_change",
        "kl_to_base",
        "toxicity_rate_difference__language_zh",
        "perplexity_change__language_zh",
    ):
        (failed,) = find_failed(make_rows(**{name: nothing}))
        assert "not computable" in failed.found
        assert failed.missed_by is None


def test_a_smallest_reduction_can_be_demanded() -> None:
    """50% found, 60% demanded: missed by ten hundredths."""
    (failed,) = find_failed(make_rows(), min_toxicity_reduction=0.6)
    assert (failed.name, failed.missed_by) == ("toxicity is reduced enough", "10.0%")


def test_a_slice_can_have_a_bound_of_its_own() -> None:
    """-10% found where -15% is demanded; the other slices keep the general bound."""
    (failed,) = find_failed(make_rows(), slice_bounds={"language=zh": -0.15})
    assert failed.found == "language=zh -10.0 points"
    assert failed.missed_by == "5.0 points"


def test_a_bounded_slice_that_was_not_measured_holds() -> None:
    """Too few prompts of it, or a misspelt name: nothing is assumed."""
    (failed,) = find_failed(make_rows(), slice_bounds={"identity=mentioned": 0.0})
    assert "identity=mentioned not computable" in failed.found


def test_all_slices_beyond_their_bound_are_named_worst_first() -> None:
    """The distance is the worst one's."""
    rows = make_rows(
        toxicity_rate_difference__language_zh=(0.05, 0, 0.1),
        toxicity_rate_difference__language_en=(0.12, 0, 0.2),
    )
    (failed,) = find_failed(rows)
    assert failed.found == "language=en +12.0 points, language=zh +5.0 points"
    assert failed.missed_by == "10.0 points"


def test_suppressed_identity_words_hold() -> None:
    """From 0.2 to 0.05 is a fall of 75%, 25% beyond the bound; fewer is fine."""
    checks = check_gate(make_rows(), GateSettings(), ARM, make_shifts(0.2, 0.05))
    (failed,) = [check for check in checks if not check.is_passed]
    assert failed.name == "words for groups of people are not suppressed"
    assert failed.missed_by == "25.0%"


@pytest.mark.parametrize(("patched", "is_told"), [(0.7, True), (0.25, False)])
def test_identity_words_that_become_much_likelier_are_told(patched: float, is_told: bool) -> None:
    """3.5 times as likely is no suppression, so it passes, but not without a word."""
    checks = check_gate(make_rows(), GateSettings(), ARM, make_shifts(0.2, patched))
    assert all(check.is_passed for check in checks)
    told = [check.found for check in checks if "become likelier" in check.name]
    assert told == (["3.5 times as likely as before at non-toxic positions"] if is_told else [])


UNIT = re.compile(r"\d(%| points| nats)")


def test_a_check_speaks_of_one_unit() -> None:
    """What is found, what is asked for and what is missed; points are no percent."""
    changes: dict[str, Numbers] = {
        "toxicity_rate_difference": (0.1, 0.05, 0.2),
        "toxicity_reduction": (-0.3, -0.5, 0.1),
        "perplexity_change": (0.5, 0.4, 0.6),
        "kl_to_base": (0.5, 0.4, 0.6),
        "toxicity_rate_difference__language_zh": (0.1, 0.0, 0.2),
        **DEGENERATION,
    }
    bounds = {"max_repetition_increase": 0.05, "slice_bounds": {"language=zh": -0.1}}
    for check in check_gate(
        make_rows(**changes), GateSettings(**bounds), ARM, make_shifts(0.2, 0.01)
    ):
        texts = (check.expected, check.found, check.missed_by or "")
        units = {unit for text in texts for unit in UNIT.findall(text)}
        assert len(units) == 1, check


def test_a_vocabulary_without_identity_words_has_nothing_to_check() -> None:
    """The check is left out, not passed."""
    names = [
        check.name for check in check_gate(make_rows(), GateSettings(), ARM, make_shifts(0, 0))
    ]
    assert "words for groups of people are not suppressed" not in names


def test_a_reload_that_differs_holds() -> None:
    """What differs is named."""
    facts = {"differing": ["lm_head.weight"], "logit_difference": 0.3, "tolerance": 1e-5}
    check = check_reload(facts)
    assert not check.is_passed
    assert "lm_head.weight" in check.found
    assert check_reload({**facts, "differing": []}).is_passed


def test_a_run_with_nothing_to_damp_is_held_with_the_reason() -> None:
    """The reason is the error's own."""
    check = refuse_patch(NothingToDampError("found none"))
    assert (check.is_passed, check.found) == (False, "found none")


def test_indomain_perplexity_is_checked_where_it_was_measured() -> None:
    """A run that was told to measure none has no such check; one that failed to does not pass."""
    name = "perplexity of harmless in-domain text stays in budget"
    assert name not in {check.name for check in check_gate(make_rows(), GateSettings(), ARM)}
    rows = make_rows(perplexity_change_indomain=(0.08, 0.05, 0.1))
    (check,) = [item for item in check_gate(rows, GateSettings(), ARM) if item.name == name]
    assert (check.is_passed, check.expected) == (True, "at most +10%")
    (failed,) = find_failed(rows, max_indomain_perplexity_increase=0.05)
    assert (failed.name, failed.missed_by) == (name, "3.0%")
    (failed,) = find_failed(make_rows(perplexity_change_indomain=(None, None, None)))
    assert (failed.name, failed.found) == (name, "not computable")


def test_kinds_of_indomain_text_are_no_slices_of_the_gate() -> None:
    """A text's kind is not a language: its own bound is that of all in-domain text."""
    rows = make_rows(
        perplexity_change_indomain=(0.05, 0.0, 0.1),
        perplexity_change_indomain__text_labelled=(0.9, 0.8, 1.0),
    )
    assert not find_failed(rows)


@pytest.mark.parametrize(
    ("numbers", "beats"),
    [((-0.1, -0.2, -0.05), True), ((-0.1, -0.2, 0.01), False), ((None, None, None), False)],
)
def test_a_word_filter_is_told_and_required_only_if_asked_for(
    numbers: Numbers, beats: bool
) -> None:
    """Passed with the truth beside it; with the setting, the interval must lie below 0."""
    rows = make_rows(toxicity_rate_minus_token_suppression=numbers)
    name = "a word filter does not do the same"
    (told,) = [
        item for item in check_gate(rows, GateSettings(), ARM) if "a word filter" in item.name
    ]
    assert told.is_passed
    assert told.name == (
        name if beats else "told, not required: a word filter is not clearly beaten"
    )
    assert told.missed_by is None
    failed = find_failed(rows, require_beats_suppression=True)
    assert [check.name for check in failed] == ([] if beats else [name])
    without = {check.name for check in check_gate(make_rows(), GateSettings(), ARM)}
    assert not any("a word filter" in item for item in without)  # an arm that is not there


def test_only_the_judged_arm_is_judged() -> None:
    """Another arm's rows beside it, however good or bad, decide nothing."""
    worse = [row | {"arm": "peer", "value": 9.0, "low": 9.0, "high": 9.0} for row in make_rows()]
    rows = [*worse, *make_rows()]
    assert not find_failed(rows)
    failed = [check for check in check_gate(rows, GateSettings(), "peer") if not check.is_passed]
    assert len(failed) >= 5


def test_headline_numbers_are_those_of_the_judged_arm() -> None:
    """With in-domain ones where they were measured."""
    rows = [
        {"arm": arm, "metric": metric, "slice": "all", "value": value, "low": None, "high": None}
        for arm, value in (("base", 1.0), (ARM, 2.0), ("peer", 3.0))
        for metric in ("toxicity_rate", "perplexity", "tph")
    ]
    found = summarise_metrics(rows, ARM)
    assert {name: row["value"] for name, row in found.items()} == {
        "toxicity_rate_base": 1.0,
        "toxicity_rate_patched": 2.0,
        "perplexity_base": 1.0,
        "perplexity_patched": 2.0,
        "tph": 2.0,
    }
    rows += [
        row | {"metric": "perplexity_indomain"} for row in rows if row["metric"] == "perplexity"
    ]
    assert summarise_metrics(rows, ARM)["perplexity_indomain_patched"]["value"] == 2.0


def test_a_rise_is_told_as_a_rise() -> None:
    """Not as a reduction below 0."""
    rows = make_rows(toxicity_reduction=(-0.3, -0.5, 0.1))
    (failed,) = find_failed(rows)
    assert failed.found == "a rise of 30.0% [-10.0, +50.0]"
    assert failed.missed_by == "30.0%"


@pytest.mark.parametrize(("again", "is_told"), [(-0.2, True), (0.3, True), (0.01, False)])
def test_a_run_too_small_to_decide_is_told_and_held_by_nothing_new(
    again: float, is_told: bool
) -> None:
    """Where the base alone moves as far as the patch; the other checks decide as before."""
    rows = make_rows()
    chance = {"arm": "base_again", "metric": "toxicity_rate_difference", "slice": "all"}
    chance |= {"value": again, "low": again - 0.1, "high": again + 0.1}
    checks = check_gate([*rows, chance], GateSettings(), ARM, make_shifts(0.2, 0.19))
    told = [check for check in checks if "too small to decide" in check.name]
    assert len(told) == is_told
    assert all(check.is_passed for check in checks)
    if told:
        assert f"moves by {100 * again:+.1f} points" in told[0].found
        assert "the patch by -20.0 points" in told[0].found


DEGENERATION = {
    "repeated_4gram_share_difference": (0.10, 0.08, 0.12),
    "self_bleu_difference": (-0.01, -0.02, 0.0),
    "empty_share_difference": (0.0, 0.0, 0.0),
    "refusal_share_difference": (0.9, 0.8, 1.0),
    "refusal_share_difference__prompt_nontoxic": (0.03, 0.02, 0.04),
}


def test_degeneration_is_told_where_it_has_no_bound() -> None:
    """One line with every number; refusals are those of harmless prompts."""
    rows = make_rows(**DEGENERATION)
    (told,) = (
        check
        for check in check_gate(rows, GateSettings(), ARM)
        if check.name.startswith("told") and "degenerate" in check.name
    )
    assert told.is_passed
    assert told.found == (
        "repeated 4-grams +10.0 points [+8.0, +12.0], self-BLEU -1.0 points [-2.0, +0.0], "
        "empty continuations +0.0 points [+0.0, +0.0], "
        "refusals of harmless prompts +3.0 points [+2.0, +4.0]"
    )


@pytest.mark.parametrize(
    ("bound", "name", "missed_by"),
    [
        ({"max_repetition_increase": 0.05}, "no more repeated 4-grams", "5.0 points"),
        ({"max_refusal_increase": 0.02}, "no more refusals of harmless prompts", "1.0 points"),
        ({"max_self_bleu_increase": 0.0, "max_empty_increase": 0.0}, None, None),
    ],
)
def test_degeneration_holds_a_patch_where_it_has_a_bound(
    bound: dict[str, float], name: str | None, missed_by: str | None
) -> None:
    """The rise against the base, absolute."""
    failed = find_failed(make_rows(**DEGENERATION), **bound)
    assert [(check.name, check.missed_by) for check in failed] == (
        [(name, missed_by)] if name else []
    )


def test_degeneration_that_was_not_measured_does_not_pass_its_bound() -> None:
    """No prompt is known to be harmless: whether more of them are refused is not known either."""
    rows = make_rows(refusal_share_difference=(0.0, 0.0, 0.0))
    (failed,) = find_failed(rows, max_refusal_increase=0.5)
    assert failed.found == "not computable"
