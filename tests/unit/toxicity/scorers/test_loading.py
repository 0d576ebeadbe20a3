"""Scorers: probabilities as an independent reference gives them; nothing untrusted is opened."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from eigenshift.base.errors import ScorerError, SettingsError
from eigenshift.settings import ScorerSettings, load_preset
from eigenshift.toxicity.scorers.identity import identify_scorer
from eigenshift.toxicity.scorers.interface import Score, score_by_length
from eigenshift.toxicity.scorers.loading import load_scorer
from eigenshift.toxicity.scorers.sequence_scorer import OpenClassifier
from eigenshift.toxicity.word_lists import WordList, load_identity_terms, read_words
from tests.support.tiny_classifier import make_classifier

LABELS = ["neutral", "toxic", "other"]


@pytest.fixture
def classifier(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A three-label classifier whose labels exclude each other."""
    return make_classifier(tmp_path / "classifier", tiny_tokenizer, LABELS)


def load(texts_per_batch: int = 8, **settings: Any) -> Any:
    """A scorer on the CPU."""
    return load_scorer(ScorerSettings(**settings), "cpu", texts_per_batch)


def compute_class_scores(folder: Path, texts: list[str]) -> torch.Tensor:
    """Class scores of one unpadded text at a time, shape (text, label)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt"))[0] for text in texts])


def test_detoxify_scores_are_those_of_its_own_class(neutral_texts: list[str]) -> None:
    """The demo's checkpoint, in our batches, against `Detoxify.predict` one text at a time."""
    from detoxify import Detoxify

    settings = load_preset("demo").scorer
    document = torch.load(settings.checkpoint, weights_only=True)
    document["config"]["arch"]["args"]["model_type"] = settings.config_folder
    from eigenshift.store.scratch import scratch_folder

    checkpoint = scratch_folder() / "reference.ckpt"
    torch.save(document, checkpoint)
    reference = Detoxify(
        "original", checkpoint=str(checkpoint), huggingface_config_path=settings.config_folder
    )
    expected = [reference.predict(text)["toxicity"] for text in neutral_texts]
    scores = load_scorer(settings, "cpu", 7).score(neutral_texts)
    assert [score.probability for score in scores] == pytest.approx(expected, abs=1e-5)


def test_labels_that_exclude_each_other_get_a_softmax(
    classifier: Path, neutral_texts: list[str]
) -> None:
    """The toxic label's softmax, whatever the order and the batches."""
    expected = torch.softmax(compute_class_scores(classifier, neutral_texts), 1)[:, 1]
    assert expected.std() > 0.05
    scores = load(kind="classifier", model=str(classifier)).score(neutral_texts)
    assert [score.probability for score in scores] == pytest.approx(expected.tolist(), abs=1e-5)
    turned = load(3, kind="classifier", model=str(classifier)).score(neutral_texts[::-1])
    assert [score.probability for score in turned[::-1]] == pytest.approx(
        expected.tolist(), abs=1e-5
    )


def test_labels_that_do_not_exclude_each_other_get_a_sigmoid(
    tmp_path: Path, tiny_tokenizer: Any, neutral_texts: list[str]
) -> None:
    """As the configuration's problem_type says."""
    folder = make_classifier(
        tmp_path / "multi", tiny_tokenizer, LABELS, "multi_label_classification"
    )
    expected = torch.sigmoid(compute_class_scores(folder, neutral_texts))[:, 1]
    scores = load(kind="classifier", model=str(folder)).score(neutral_texts)
    assert [score.probability for score in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_single_output_gets_a_sigmoid(
    tmp_path: Path, tiny_tokenizer: Any, neutral_texts: list[str]
) -> None:
    """A softmax over one label would always be 1."""
    folder = make_classifier(tmp_path / "single", tiny_tokenizer, ["toxic"])
    expected = torch.sigmoid(compute_class_scores(folder, neutral_texts))[:, 0]
    scores = load(kind="classifier", model=str(folder)).score(neutral_texts)
    assert [score.probability for score in scores] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_argmax_verdict_is_toxic_exactly_where_toxic_is_likeliest(
    classifier: Path, neutral_texts: list[str]
) -> None:
    """Above 0.5 is the argmax, although the softmax over three labels may stay below."""
    class_scores = compute_class_scores(classifier, neutral_texts)
    is_likeliest = (class_scores.argmax(1) == 1).tolist()
    scores = load(kind="classifier", model=str(classifier), verdict="argmax").score(neutral_texts)
    assert [(score.probability or 0) > 0.5 for score in scores] == is_likeliest
    softmax = torch.softmax(class_scores, 1)[:, 1]
    assert (softmax > 0.5).tolist() != is_likeliest
    assert 0 < sum(is_likeliest) < len(is_likeliest)


def test_with_two_labels_the_argmax_verdict_is_the_probability(
    tmp_path: Path, tiny_tokenizer: Any, neutral_texts: list[str]
) -> None:
    """The paper's classifier has two: its argmax is a probability above 0.5."""
    folder = str(make_classifier(tmp_path / "two", tiny_tokenizer, ["neutral", "toxic"]))
    plain = load(kind="classifier", model=folder).score(neutral_texts)
    argmax = load(kind="classifier", model=folder, verdict="argmax").score(neutral_texts)
    assert [score.probability for score in argmax] == pytest.approx(
        [score.probability for score in plain], abs=1e-6
    )


@pytest.mark.parametrize("label", ["TOXIC", "1"])
def test_the_toxic_label_is_found_by_name_or_index(classifier: Path, label: str) -> None:
    """Case does not matter."""
    named = load(kind="classifier", model=str(classifier), label=label).score(["a garden"])
    assert named == load(kind="classifier", model=str(classifier)).score(["a garden"])


def test_an_unknown_label_names_the_known_ones(classifier: Path) -> None:
    """Nothing is guessed."""
    with pytest.raises(ScorerError, match="0: neutral, 1: toxic, 2: other"):
        load(kind="classifier", model=str(classifier), label="insult")


def test_a_model_without_a_classification_head_is_refused(tiny_model_folder: Path) -> None:
    """Its head would be random numbers that look like probabilities."""
    with pytest.raises(ScorerError, match="random numbers"):
        load(kind="classifier", model=str(tiny_model_folder))


def test_a_detoxify_checkpoint_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """A head left out of the checkpoint would be random numbers."""
    demo = load_preset("demo").scorer
    document = torch.load(demo.checkpoint, weights_only=True)
    removed = [name for name in document["state_dict"] if name.startswith("classifier")]
    assert removed
    for name in removed:
        del document["state_dict"][name]
    torch.save(document, tmp_path / "headless.ckpt")
    with pytest.raises(ScorerError, match="random numbers"):
        load(checkpoint=str(tmp_path / "headless.ckpt"), config_folder=demo.config_folder)


def test_pickled_weights_of_a_classifier_are_refused(classifier: Path) -> None:
    """Safetensors only; the remedy is named."""
    (classifier / "model.safetensors").unlink()
    (classifier / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ScorerError, match="save_pretrained"):
        load(kind="classifier", model=str(classifier))


def test_a_long_text_is_truncated_not_unscored(classifier: Path) -> None:
    """The classifier has 64 positions, the text more tokens."""
    (score,) = load(kind="classifier", model=str(classifier)).score(["garden " * 200])
    assert score.probability is not None


def test_one_text_that_breaks_the_classifier_leaves_the_batch_scored() -> None:
    """The batch is tried again text by text, and only that text is unscored."""

    class Fragile:
        def __init__(self) -> None:
            self.device = "cpu"

        def to(self, _: str) -> Any:
            return self

        def __call__(self, texts: list[str]) -> tuple[torch.Tensor]:
            if "broken" in texts:
                raise RuntimeError("made to fail")
            return (
                torch.tensor([[0.0, float("nan") if text == "odd" else 2.0] for text in texts]),
            )

    class Tokens(dict[str, Any]):
        def __call__(self, texts: list[str], **_: Any) -> Any:
            return Tokens(texts=texts)

        def to(self, _: str) -> Any:
            return self

    from eigenshift.toxicity.scorers.sequence_scorer import SequenceScorer

    whole = OpenClassifier(Fragile(), Tokens(), lambda scores: torch.sigmoid(scores[:, 1]), 64)
    scores = SequenceScorer("fragile", "1", whole, "cpu", 8).score(["fine", "broken", "odd", " "])
    assert scores[0].probability == pytest.approx(0.8808, abs=1e-4)
    assert [score.reason for score in scores[1:]] == [
        "classifier failed: RuntimeError",
        "classifier gave no finite number",
        "blank text",
    ]


def test_batches_hold_texts_of_similar_length_and_results_keep_their_order() -> None:
    """Each batch is a run of the sorted lengths."""
    batches: list[list[str]] = []

    def judge(texts: list[str]) -> list[Score]:
        batches.append(texts)
        return [Score(float(len(text))) for text in texts]

    texts = ["aaaa", "a", "", "aaa", "aa", "aaaaa"]
    scores = score_by_length(texts, 2, judge)
    assert [score.probability for score in scores] == [4, 1, None, 3, 2, 5]
    assert batches == [["a", "aa"], ["aaa", "aaaa"], ["aaaaa"]]


def test_a_lexicon_counts_whole_words_and_chinese_anywhere(tmp_path: Path) -> None:
    """Boundaries for words of scripts with spaces, also next to Chinese; case does not matter."""
    words = tmp_path / "words.txt"
    words.write_text("# made up\nzorb\nglim pnit\n呆灯瓜\n\n", encoding="utf-8")
    texts = [
        "a ZORB, here",
        "zorbing a prezorb",
        "glim  pnit",
        "glimpnit",
        "有一个呆灯瓜在等",
        "你zorb吗",
        "a garden",
        "  ",
    ]
    scores = load(kind="lexicon", words=str(words)).score(texts)
    assert [score.probability for score in scores] == [1, 0, 1, 0, 1, 1, 0, None]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '["zorb", "glim"]'),
        ("b.json", '{"zorb": [1], "glim": [0]}'),
        ("c.csv", "word,severity\nzorb,1\nglim,2\n"),
        ("d.txt", "zorb\nglim\n"),
    ],
)
def test_words_are_read_from_text_csv_and_json(tmp_path: Path, name: str, content: str) -> None:
    """An object's keys are the words."""
    (tmp_path / name).write_text(content)
    assert read_words(str(tmp_path / name)) == ["zorb", "glim"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "{zorb"), ("b.json", "[1]"), ("c.csv", "x\nzorb\n"), ("d.txt", "\n \n")],
)
def test_a_file_without_words_is_a_clear_error_without_its_content(
    tmp_path: Path, name: str, content: str
) -> None:
    """The message names the file, never what is in it."""
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=name.replace(".", r"\.")) as caught:
        read_words(str(tmp_path / name))
    assert "zorb" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_words_of_a_lexicon_are_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its representation nor the log holds one."""
    (tmp_path / "words.txt").write_text("zorb\n")
    with caplog.at_level(logging.DEBUG):
        scorer = load(kind="lexicon", words=str(tmp_path / "words.txt"))
        scorer.score(["a zorb"])
    assert "zorb" not in f"{caplog.text}{scorer!r}{vars(scorer)!r}"


def test_identity_terms_are_neutral_words_in_two_languages() -> None:
    """Groups of people are found; colours and longer words are not."""
    terms = load_identity_terms()
    assert terms.occurs_in("two Muslim women")
    assert terms.occurs_in("一位穆斯林")
    assert "Gay" in terms
    assert not terms.occurs_in("a black kettle and a mangarden")
    assert len(terms) > 100


def test_an_empty_word_list_finds_nothing() -> None:
    """No pattern is not the pattern that fits everything."""
    assert not WordList([" "]).occurs_in("anything")


def test_what_decides_the_scores_decides_the_digest(classifier: Path, tmp_path: Path) -> None:
    """Verdict and weights do, name and threshold do not."""
    one = ScorerSettings(kind="classifier", model=str(classifier))
    assert identify_scorer(one) == identify_scorer(
        one.model_copy(update={"name": "other", "toxic_threshold": 0.7})
    )
    argmax = ScorerSettings(kind="classifier", model=str(classifier), verdict="argmax")
    copied = shutil.copytree(classifier, tmp_path / "copied")
    configuration = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**configuration, "layer_norm_eps": 1e-3}))
    other = ScorerSettings(kind="classifier", model=str(copied))
    assert len({identify_scorer(settings) for settings in (one, argmax, other)}) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "classifier"},
        {"kind": "lexicon"},
        {"kind": "lexicon", "words": "a", "checkpoint": "b"},
        {"model": "org/model"},
        {"verdict": "argmax"},
        {"kind": "classifier", "model": "a", "verdict": "argmax", "toxic_threshold": 0.7},
    ],
)
def test_settings_that_do_not_fit_their_kind_are_refused(settings: dict[str, Any]) -> None:
    """Before anything is loaded."""
    with pytest.raises(ValidationError):
        ScorerSettings.model_validate(settings)


def test_texts_of_a_language_can_have_a_scorer_of_their_own(
    classifier: Path, tmp_path: Path, neutral_texts: list[str]
) -> None:
    """Chinese texts by a lexicon, all others by the classifier; the order is kept."""
    words = tmp_path / "words.txt"
    words.write_text("火车\n", encoding="utf-8")
    chinese = {"language": "zh", "kind": "lexicon", "words": str(words)}
    one = {"kind": "classifier", "model": str(classifier)}
    mixed = load(**one, for_languages=[chinese]).score(neutral_texts)
    plain = load(**one).score(neutral_texts)
    by_words = load(kind="lexicon", words=str(words)).score(neutral_texts)
    n_english = 40
    assert [score.probability for score in mixed[:n_english]] == pytest.approx(
        [score.probability for score in plain[:n_english]], abs=1e-6
    )
    assert mixed[n_english:] == by_words[n_english:]
    assert {score.probability for score in mixed[n_english:]} == {0.0, 1.0}
    settings = ScorerSettings.model_validate({**one, "for_languages": [chinese]})
    assert identify_scorer(settings) != identify_scorer(ScorerSettings.model_validate(one))


@pytest.mark.parametrize(
    "parts",
    [
        [{"language": "zh", "kind": "lexicon", "words": "w"}] * 2,
        [{"language": "zh", "kind": "lexicon", "words": "w", "toxic_threshold": 0.8}],
        [{"language": "tr", "kind": "lexicon", "words": "w"}],
    ],
)
def test_scorers_of_languages_that_contradict_each_other_are_refused(
    parts: list[dict[str, Any]],
) -> None:
    """Two for a language, another threshold, a language that cannot be told by script."""
    with pytest.raises(ValidationError):
        ScorerSettings.model_validate({"for_languages": parts})


def test_a_scorer_is_named_after_its_kind() -> None:
    """Unless it has a name of its own."""
    named = ScorerSettings.model_validate({"kind": "lexicon", "words": "w"}).name
    assert named == "lexicon"
    assert ScorerSettings().name == "detoxify"


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """What a pickle may do to whoever opens it."""
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_unopened(tmp_path: Path) -> None:
    """Detoxify unpickles what it is given, so the check comes before it."""
    checkpoint, trace = tmp_path / "bad.ckpt", tmp_path / "trace"
    torch.save({"config": {}, "state_dict": Malicious(trace)}, checkpoint)
    with pytest.raises(ScorerError, match="weights only"):
        load_scorer(ScorerSettings(checkpoint=str(checkpoint)), "cpu", 8)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", pickle.dumps({"a": 1}, 2)],
    ids=["empty", "text", "pickle"],
)
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    """Whatever is wrong with the file, the message names it and nothing runs."""
    checkpoint = tmp_path / "damaged.ckpt"
    checkpoint.write_bytes(content)
    with pytest.raises(ScorerError, match=r"damaged\.ckpt"):
        load_scorer(ScorerSettings(checkpoint=str(checkpoint)), "cpu", 8)


def test_a_missing_checkpoint_is_a_clear_error() -> None:
    """The path that was looked for is in the message."""
    with pytest.raises(ScorerError, match="nowhere"):
        load_scorer(ScorerSettings(checkpoint="nowhere/model.ckpt"), "cpu", 8)
