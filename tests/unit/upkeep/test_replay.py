"""A repeated run against its file: what it read, then what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import eigenshift
from eigenshift.base.errors import SettingsError
from eigenshift.model.files import identify_model
from eigenshift.settings import RefreshSettings, parse_settings
from eigenshift.store.source_files import digest_file
from eigenshift.toxicity.scorers.identity import identify_scorer
from eigenshift.toxicity.stages import Classifier
from eigenshift.upkeep.replay import Replay, check_inputs, compare_metrics, list_notes
from eigenshift.upkeep.reproduction import Code, Metric, Reproduction


@pytest.fixture
def settings(tmp_path: Path, tiny_model_folder: Path) -> RefreshSettings:
    """Settings of a run on three files, a model's folder and a list of words."""
    for name in ("train.csv", "prompts.jsonl", "neutral.txt", "words.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    return parse_settings(
        {
            "model": {"id": str(tiny_model_folder)},
            "sources": [
                {"name": "comments", "format": "jigsaw", "uri": str(tmp_path / "train.csv")},
                {
                    "name": "prompts",
                    "format": "real_toxicity_prompts",
                    "uri": str(tmp_path / "*.jsonl"),
                },
                {"name": "neutral", "format": "sentences", "uri": str(tmp_path / "neutral.txt")},
            ],
            "scorer": {"kind": "lexicon", "words": str(tmp_path / "words.txt")},
            "components": {"positions": "occlusion"},
        },
        "test",
    )


@pytest.fixture
def recorded(settings: RefreshSettings, tmp_path: Path) -> Reproduction:
    """What such a run noted."""
    model = identify_model(settings.model)
    files = {"comments": "train.csv", "prompts": "prompts.jsonl", "neutral": "neutral.txt"}
    return Reproduction.model_validate(
        {
            "run_id": "run-1",
            "command": "refresh",
            "judged": "eigenshift",
            "settings": {},
            "model": {"id": "tiny", "digest": model.digest, "files": dict(model.files)},
            "data": [
                {
                    "dataset": dataset,
                    "file": name,
                    "sha256": digest_file(str(tmp_path / name)),
                    "bytes": 1,
                    "rows_read": 1,
                }
                for dataset, name in files.items()
            ],
            "scorers": [
                {
                    "name": "lexicon",
                    "digest": identify_scorer(Classifier.of(settings.scorer).settings),
                }
            ],
            "code": {"version": eigenshift.__version__, "digest": None},
            "versions": {"eigenshift": eigenshift.__version__},
            "machine": "test",
            "metrics": [],
        }
    )


def test_the_same_files_pass(recorded: Reproduction, settings: RefreshSettings) -> None:
    """Nothing is said."""
    check_inputs(recorded, settings)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.csv", "changed", r"source comments, train\.csv: expected sha256 \w{12}, found"),
        ("train.csv", None, r"source comments: .*train\.csv: expected at least one file"),
        ("other.jsonl", "new", r"source prompts, other\.jsonl: expected no such file, found one"),
        ("prompts.jsonl", "changed", r"source prompts, prompts\.jsonl: expected sha256"),
        ("words.txt", "changed", r"scorer lexicon: expected sha256"),
    ],
)
def test_other_data_is_refused_by_the_files_name(
    recorded: Reproduction,
    settings: RefreshSettings,
    tmp_path: Path,
    name: str,
    content: str | None,
    said: str,
) -> None:
    """Changed, gone or new; one line for each, and what to do."""
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=said) as refused:
        check_inputs(recorded, settings)
    assert "found 1 difference(s)" in str(refused.value)
    assert "--set sources.0.uri" in str(refused.value)


def test_another_model_is_refused_by_the_files_name(
    recorded: Reproduction, settings: RefreshSettings
) -> None:
    """File by file where the run noted them, else as a whole."""
    files = recorded.model.files | {"config.json": "0" * 64}
    changed = recorded.model.model_copy(update={"digest": "1" * 64, "files": files})
    with pytest.raises(SettingsError, match=r"model, config\.json: expected sha256 000000000000"):
        check_inputs(recorded.model_copy(update={"model": changed}), settings)
    unknown = changed.model_copy(update={"files": {}})
    with pytest.raises(SettingsError, match=r"model .*: expected sha256 111111111111"):
        check_inputs(recorded.model_copy(update={"model": unknown}), settings)


def make_metric(**changes: Any) -> Metric:
    """A number with its interval."""
    document = {
        "arm": "base",
        "scorer": "lexicon",
        "metric": "toxicity_rate",
        "slice": "all",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 10,
    }
    return Metric.model_validate(document | changes)


def compare(recorded: Metric, found: Metric, tolerance: float) -> Any:
    """Differences of one row to another."""
    return compare_metrics([recorded], [found.model_dump()], tolerance)


def test_equal_numbers_are_counted_and_none_is_listed() -> None:
    """Value and both ends."""
    assert compare(make_metric(), make_metric(), 0.0) == ([], 3)


def test_a_number_that_differs_is_named_with_its_difference() -> None:
    """Beyond the tolerance or within it: listed either way."""
    (found,), n_compared = compare(make_metric(), make_metric(high=0.61), 1e-6)
    assert n_compared == 3
    assert (found.metric, found.number, found.is_beyond) == ("toxicity_rate", "high", True)
    assert found.difference == pytest.approx(0.01)
    (within,), _ = compare(make_metric(), make_metric(high=0.61), 0.05)
    assert not within.is_beyond


def test_numbers_that_only_one_run_has_are_beyond_any_tolerance() -> None:
    """Null then and not now, or a metric that is gone."""
    (found,), _ = compare(make_metric(), make_metric(value=None), 1.0)
    assert (found.recorded, found.found, found.difference) == (0.5, None, None)
    assert found.is_beyond
    gone, n_compared = compare_metrics([make_metric()], [], 1.0)
    assert (len(gone), n_compared) == (3, 3)
    assert compare(make_metric(low=None), make_metric(low=None), 0.0) == ([], 2)


def test_the_table_has_what_is_beyond_first() -> None:
    """Metric, recorded, found and difference; the summary counts."""
    recorded = [make_metric(), make_metric(metric="perplexity", value=20.0, low=None, high=None)]
    found = [
        make_metric(value=0.5 + 1e-9).model_dump(),
        make_metric(metric="perplexity", value=21.0, low=None, high=None).model_dump(),
    ]
    differences, n_compared = compare_metrics(recorded, found, 1e-6)
    replay = Replay(
        run_id="b",
        recorded_run_id="a",
        store="s",
        tolerance=1e-6,
        n_compared=n_compared,
        differences=differences,
        notes=[],
    )
    assert replay.rows[0] == ["beyond", "base", "perplexity", "all", "20", "21", "+1"]
    assert replay.rows[1][0] == "within"
    assert not replay.is_equal
    assert replay.summary == "4 numbers of run a: 1 differ by more than 1e-06."


def test_other_code_libraries_and_settings_are_told_not_refused(recorded: Reproduction) -> None:
    """They may explain a difference."""
    assert list_notes(recorded, ()) == []
    older = recorded.model_copy(
        update={"code": Code(version="0.0.1", digest=None), "versions": {"torch": "1.0"}}
    )
    notes = list_notes(older, ["evaluation.seed=1"])
    assert notes[0] == "changed here: evaluation.seed=1"
    assert notes[1].startswith("eigenshift 0.0.1 then")
    assert notes[2].startswith("torch 1.0 then")
    edited = recorded.model_copy(
        update={"code": Code(version=eigenshift.__version__, digest="0" * 64)}
    )
    assert list_notes(edited, ()) == [
        f"the code of eigenshift {eigenshift.__version__} is not that of then"
    ]
