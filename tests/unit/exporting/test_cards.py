"""Model cards: metadata the hub accepts, numbers from the run, limits, and no texts or paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData

from eigenshift.exporting import ExportOptions, export_patch
from eigenshift.exporting.cards import CardFacts, describe_export, describe_metadata, read_licence
from eigenshift.ledger.runs import write_run
from eigenshift.model.loading import LanguageModel
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import LogitEdit, ModelEdit
from eigenshift.patches.patching import make_patch
from tests.support.architectures import change_linears
from tests.support.fake_hub import find_card_errors
from tests.support.small_store import SmallStore, build_small_store
from tests.unit.exporting.conftest import open_run_patch


def read_evaluation(small: SmallStore) -> list[dict[str, Any]]:
    """The run's evaluation."""
    artifact = small.artifacts.open(small.references["evaluation"])
    return artifact.read_table("evaluations.parquet").to_pylist()


def make_facts(small: SmallStore, model_id: str, **changes: Any) -> CardFacts:
    """What a card of a merged export is made of, as if the model had another id."""
    record = small.record.model_copy(deep=True)
    record.settings["model"]["id"] = model_id
    values: dict[str, Any] = {
        "record": record,
        "patch": open_run_patch(small),
        "arm": "eigenshift",
        "rows": read_evaluation(small),
        "format": "merged",
        "licence": {},
        "changed": {},
    }
    return CardFacts(**{**values, **changes})


@pytest.mark.parametrize("format_", ["patch", "merged", "lora"])
def test_every_card_is_valid(untied: SmallStore, tmp_path: Path, format_: str) -> None:
    """Strict parsing by huggingface_hub and the hub's documented schema both pass."""
    out = export_patch(untied.url, None, format_, tmp_path / "out")
    text = (out / "README.md").read_text()
    card = ModelCard(text, ignore_metadata_errors=False)
    assert find_card_errors(text) == []
    libraries = {"patch": "eigenshift", "merged": "transformers", "lora": "peft"}
    assert card.data.library_name == libraries[format_]
    assert "eigenshift" in card.data.tags
    again = ModelCardData(**card.data.to_dict(), ignore_metadata_errors=False)
    assert again.to_dict() == card.data.to_dict()


def test_the_metadata_hold_the_runs_numbers(untied: SmallStore, tmp_path: Path) -> None:
    """Each metric of the exported arm with its interval, as the evaluation has it."""
    out = export_patch(untied.url, None, "patch", tmp_path / "out")
    data = ModelCard.load(out / "README.md").data
    results = {item.metric_type: item for item in data.eval_results}
    rows = {
        row["metric"]: row
        for row in read_evaluation(untied)
        if row["arm"] == "eigenshift" and row["slice"] == "all"
    }
    assert {"toxicity_rate", "perplexity", "tph"} <= set(results)
    for metric, result in results.items():
        assert result.metric_value == rows[metric]["value"]
        if rows[metric]["low"] is not None:
            assert result.metric_args["low"] == rows[metric]["low"]
            assert result.metric_args["confidence"] == 0.95
        assert untied.run_id in result.dataset_name


def test_a_card_tells_base_run_metrics_data_limits_and_undo(
    tied: SmallStore, tmp_path: Path
) -> None:
    """Each export says what it is, how it was measured and how to undo it."""
    out = export_patch(tied.url, tied.run_id, "patch", tmp_path / "out")
    text = (out / "README.md").read_text()
    assert tied.record.model_digest in text
    assert tied.run_id in text
    for part in ("| toxicity rate |", "[", "## Data", "| comments | jigsaw |", "judged by"):
        assert part in text
    assert "fake on 40 labelled texts of this run: AUROC 0.950 [0.900, 0.990]" in text
    assert "| self-BLEU |" in text
    for part in ("## Limits", "## Load", "## Undo", "does not make it impossible"):
        assert part in text
    assert "held by the gate" not in text


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        ({"model_type": "unbiased"}, "judged by detoxify (unbiased); above"),
        (
            {"kind": "classifier", "model": "org/judge", "revision": "abc"},
            "judged by classifier (org/judge@abc); above",
        ),
        (
            {"kind": "classifier", "model": "./secret/place/judge/"},
            "judged by classifier (judge); above",
        ),
        (
            {"kind": "judge", "model": "./secret/place/guard/"},
            "judged by judge (guard, a language model that is asked); above",
        ),
        ({"kind": "lexicon", "words": "./words"}, "judged by lexicon (a list of words); above"),
        (
            {"kind": "linear", "model": "./secret/scorer"},
            "judged by linear (a linear classifier of n-grams); above",
        ),
        (
            {
                "model_type": "original",
                "for_languages": [{"kind": "classifier", "model": "org/zh", "language": "zh"}],
            },
            "judged by detoxify (original), classifier (org/zh) for texts in 'zh'; above",
        ),
    ],
)
def test_a_card_names_what_judged(
    tied: SmallStore, tmp_path: Path, scorer: dict[str, Any], expected: str
) -> None:
    """The classifier itself, of every kind, and those for one language."""
    small = tied.copy_to(tmp_path / "store")
    small.record.settings["scorer"] = scorer
    small.record.settings["components"] = {"positions": "occlusion"}
    write_run(small.artifacts.store, small.record)
    out = export_patch(small.url, None, "patch", tmp_path / "out")
    text = (out / "README.md").read_text()
    assert expected in " ".join(text.split())
    assert "secret" not in text


def test_a_card_holds_no_path_of_this_machine(tied: SmallStore, tmp_path: Path) -> None:
    """Neither the store's place nor the model's folder is passed on."""
    small = tied.copy_to(tmp_path / "store")
    model = small.record.settings["model"]
    model["name"] = None
    small.record.model_id = model["id"]
    write_run(small.artifacts.store, small.record)
    for format_ in ("patch", "merged", "lora"):
        options = ExportOptions(unties=True)
        out = export_patch(small.url, None, format_, tmp_path / format_, options)
        for path in (*out.glob("*.json"), out / "README.md"):
            assert str(Path(model["id"]).parent) not in path.read_text(), path.name
            assert small.url not in path.read_text(), path.name
    described = json.loads((tmp_path / "patch" / "patch.json").read_text())
    before = json.loads(small.find_file("patch-eigenshift", "patch.json").read_text())
    assert described == before | {"model_id": Path(model["id"]).name}


def test_a_card_of_a_held_run_says_so(tmp_path: Path, tiny_language_model: LanguageModel) -> None:
    """A patch the gate held is not passed on as if it had been released."""
    small = build_small_store(str(tmp_path / "store"), tiny_language_model)
    small.record.status = "held"
    write_run(small.artifacts.store, small.record)
    out = export_patch(small.url, None, "patch", tmp_path / "out")
    assert "held by the gate" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("model_id", "base_model"),
    [
        ("my-org/my-model", "my-org/my-model"),
        ("gpt2", "gpt2"),
        ("./my-model", None),
        ("/models/my-model", None),
        ("s3://bucket/my-model", None),
    ],
)
def test_only_a_model_of_the_hub_is_named_as_base(
    untied: SmallStore, model_id: str, base_model: str | None
) -> None:
    """The hub refuses other values of base_model."""
    data = describe_metadata(make_facts(untied, model_id)).to_dict()
    assert data.get("base_model") == base_model
    assert data.get("base_model_relation") == (base_model and "finetune")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [mit, gpl]\n---\n", {}),
        ("---\nlicense: : broken\n  - yaml\n---\n", {}),
        ("# No metadata\n", {}),
        (None, {}),
    ],
)
def test_the_bases_licence_is_passed_on_if_known(
    untied: SmallStore, tmp_path: Path, card: str | None, expected: dict[str, str]
) -> None:
    """From the base's own card; what is missing or broken is left out, not guessed."""
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    licence = read_licence(tmp_path)
    assert licence == expected
    data = describe_metadata(make_facts(untied, "org/model", licence=licence)).to_dict()
    assert {key: data[key] for key in expected} == expected


def test_a_run_that_was_not_evaluated_has_a_card_without_numbers(untied: SmallStore) -> None:
    """No numbers are made up."""
    data = describe_metadata(make_facts(untied, "org/model", rows=[]))
    assert data.eval_results is None
    assert "model-index" not in data.to_dict()


@pytest.mark.parametrize(
    ("layers", "ranks", "expected"),
    [
        (1, (4,), "adds products of rank 4 to the weights of 1 linear layer."),
        (4, (2,), "adds products of rank 2 to the weights of 4 linear layers."),
        (4, (5, 1), "adds products of ranks 1 to 5 to the weights of 4 linear layers."),
    ],
)
def test_a_card_tells_how_many_linear_layers_change(
    untied: SmallStore,
    untied_model: LanguageModel,
    layers: int,
    ranks: tuple[int, ...],
    expected: str,
) -> None:
    """And their ranks, one number where all have the same."""
    names = list(list_writers(untied_model.model))[:layers]
    edit = change_linears(untied_model, names, ranks)
    patch = make_patch(untied_model, edit, model_id="tiny", intervention="deep")
    text = describe_export(make_facts(untied, "tiny", patch=patch))
    assert f"A patch (deep) that {expected}" in text


@pytest.mark.parametrize(("n_tokens", "expected"), [(1, "1 token."), (3, "3 tokens.")])
def test_a_card_tells_how_many_tokens_logits_are_moved(
    untied: SmallStore, untied_model: LanguageModel, n_tokens: int, expected: str
) -> None:
    """A word filter names no words."""
    left = torch.zeros(untied_model.vocab, 1, dtype=torch.float64)
    left[7 : 7 + n_tokens] = -2.0
    right = torch.ones(32, 1, dtype=torch.float64)
    edit = ModelEdit(logits=LogitEdit(left, right, torch.zeros(1, dtype=torch.float64)))
    patch = make_patch(untied_model, edit, model_id="tiny", intervention="token_suppression")
    text = describe_export(make_facts(untied, "tiny", patch=patch))
    assert f"A patch (token_suppression) that moves the logits of {expected}" in text


def test_a_card_tells_that_all_rows_of_the_head_are_changed(
    untied: SmallStore, untied_model: LanguageModel
) -> None:
    """By its rank; the number of tokens would say nothing."""
    edit = ModelEdit(
        logits=LogitEdit.add_product(torch.ones(untied_model.vocab, 3), torch.ones(32, 3))
    )
    patch = make_patch(untied_model, edit, model_id="tiny", intervention="eigenshift_fisher")
    text = describe_export(make_facts(untied, "tiny", patch=patch))
    assert (
        "A patch (eigenshift_fisher) that adds a product of rank 3 to the rows of the head" in text
    )


def test_a_card_tells_what_the_patch_cost_in_capability(tied: SmallStore, tmp_path: Path) -> None:
    """Questions put by a later `benchmark` of it; before, that there were none."""
    out = export_patch(tied.url, None, "patch", tmp_path / "before")
    assert "Not measured: no benchmark questions" in (out / "README.md").read_text()
    store = tied.copy_to(tmp_path / "store")
    store.add_benchmark()
    out = export_patch(store.url, None, "patch", tmp_path / "after")
    text = (out / "README.md").read_text()
    assert find_card_errors(text) == []
    section = text.partition("## Capability")[2].partition("## Data")[0]
    assert "| all | acc | 75.0% [" in section
    assert "| -12.5% [" in section
    found = {
        item.dataset_type: item
        for item in ModelCard(text).data.eval_results
        if item.metric_type == "acc"
    }
    assert {name: item.metric_value for name, item in found.items()} == {
        "sums": 0.75,
        "places": 0.5,
    }
    assert "4 questions" in found["sums"].dataset_name


def test_a_card_says_what_limits_its_numbers(untied: SmallStore) -> None:
    """A rise as a rise, a trade-off whose interval holds 0, an A/A arm that moves as far."""
    changed = {
        ("eigenshift", "toxicity_reduction"): (-0.3, -0.5, 0.1),
        ("eigenshift", "tph"): (0.667, 0.0, 0.9),
        ("eigenshift", "toxicity_rate_difference"): (0.02, -0.01, 0.05),
        ("base_again", "toxicity_rate_difference"): (-0.03, -0.06, 0.0),
    }
    rows = [
        {**row, **dict(zip(("value", "low", "high"), numbers, strict=True))}
        if row["slice"] == "all" and (numbers := changed.get((row["arm"], row["metric"])))
        else row
        for row in read_evaluation(untied)
    ]
    facts = make_facts(untied, "org/model", rows=rows)
    text = describe_export(facts)
    assert "30.0% rise [-10.0, 50.0]" in text
    assert "66.7% [0.0, 90.0] (holds 0)" in text
    assert "**Mind**: This run is too small to decide" in text
    names = [item.metric_name for item in describe_metadata(facts).eval_results]
    assert {"reduction (below 0: a rise)", "TPH (holds 0)"} <= set(names)


def test_a_card_says_how_to_repeat_the_run(untied: SmallStore, tmp_path: Path) -> None:
    """With the digest of every file that was read; the file lies beside it."""
    out = export_patch(untied.url, None, "patch", tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "eigenshift reproduce reproduce.json" in text
    for name in ("comments.csv", "prompts.csv", "neutral.csv"):
        assert f"| {name} | `{'f' * 64}` |" in text
    recorded = json.loads((out / "reproduce.json").read_text())
    assert recorded["run_id"] == untied.run_id
    assert f"`{recorded['model']['digest']}`" in text
