"""The demo assets: the build script in its small preset, and what is bundled under data/demo."""

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
DEMO = DATA / "demo"
MIB = 2**20

JIGSAW_COLUMNS = (
    "id",
    "comment_text",
    "toxic",
    "severe_toxic",
    "obscene",
    "threat",
    "insult",
    "identity_hate",
)
TOXICN_COLUMNS = (
    "platform",
    "topic",
    "content",
    "toxic",
    "toxic_one_hot",
    "toxic_type",
    "toxic_type_one_hot",
    "expression",
    "expression_one_hot",
    "target",
    "length",
    "num_attacked",
)
RTP_SCORES = {
    "profanity",
    "sexually_explicit",
    "identity_attack",
    "flirtation",
    "threat",
    "insult",
    "severe_toxicity",
    "toxicity",
}
CORPUS_FILES = (
    "jigsaw/train.csv",
    "toxicn/ToxiCN_demo.csv",
    "rtp/prompts.jsonl",
    "neutral/sentences.csv",
)


def run_offline(arguments: list[str]) -> str:
    """Run Python with `arguments`, the Hub out of reach, and return its stdout."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the demo once with the small preset."""
    out = tmp_path_factory.mktemp("demo")
    run_offline([str(DATA / "build_demo.py"), "--out", str(out), "--small", "--seed", "3"])
    return out


@pytest.fixture(scope="module")
def insults() -> Any:
    """The module of the demo's insults."""
    sys.path.insert(0, str(DATA))
    import demo_insults

    return demo_insults


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    """What `measure_demo.py` says of the bundled demo, on fewer texts than by default."""
    sizes = ["--n-held-out", "3000", "--n-samples", "3"]
    output = run_offline([str(DATA / "measure_demo.py"), "--demo", str(DEMO), *sizes])
    figures: dict[str, dict[str, float]] = json.loads(output[output.index("{") :])
    return figures


@pytest.fixture(params=["built", "bundled"])
def demo(request: pytest.FixtureRequest) -> Path:
    """Each demo in turn: a freshly built small one and the bundled one."""
    if request.param == "bundled":
        return DEMO
    built: Path = request.getfixturevalue("small_demo")
    return built


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file as csv.DictReader does, a leading BOM removed."""
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def test_jigsaw_file_has_kaggle_schema_and_both_classes(demo: Path) -> None:
    """Header, ids, quoting and the labels, but for the two rows documented as bad."""
    path = demo / "jigsaw" / "train.csv"
    rows = read_csv(path)
    assert tuple(rows[0]) == JIGSAW_COLUMNS
    assert path.read_text(encoding="utf-8").startswith('"id","comment_text","toxic"')
    assert all(len(row["id"]) == 16 and int(row["id"], 16) >= 0 for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert sum(row["toxic"] not in {"0", "1"} for row in rows) == 2
    assert 0.25 < sum(row["toxic"] == "1" for row in rows) / len(rows) < 0.45
    assert any("\n" in row["comment_text"] for row in rows)
    assert sum(not row["comment_text"] for row in rows) == 1


def test_toxicn_file_has_bom_and_list_cells(demo: Path) -> None:
    """BOM, columns, list-valued cells that agree with the plain ones but for two bad rows."""
    path = demo / "toxicn" / "ToxiCN_demo.csv"
    assert path.read_bytes().startswith(b"\xef\xbb\xbfplatform,")
    rows = read_csv(path)
    assert tuple(rows[0]) == TOXICN_COLUMNS
    one_hot = {"0": [1, 0], "1": [0, 1]}
    mismatched = [r for r in rows if json.loads(r["toxic_one_hot"]) != one_hot.get(r["toxic"])]
    assert len(mismatched) == 2
    assert {len(json.loads(row["target"])) for row in rows} == {6}
    assert {len(json.loads(row["toxic_type_one_hot"])) for row in rows} == {3}
    assert {len(json.loads(row["expression_one_hot"])) for row in rows} == {4}
    assert all(int(row["length"]) == len(row["content"]) for row in rows)


def test_prompt_file_has_real_toxicity_prompts_schema(demo: Path) -> None:
    """Keys and scores of each record; both languages; some null scores; one score above 1."""
    lines = (demo / "rtp" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        assert set(row) == {
            "filename",
            "begin",
            "end",
            "challenging",
            "prompt",
            "continuation",
        }
        assert set(row["prompt"]) == set(row["continuation"]) == RTP_SCORES | {"text"}
    scores = [row["prompt"]["toxicity"] for row in rows]
    assert None in scores
    assert sum(score is not None and score > 1 for score in scores) == 1
    assert 0.5 < sum(score is not None and score > 0.5 for score in scores) / len(rows) < 0.7
    assert any(row["prompt"]["text"].isascii() for row in rows if row["prompt"]["text"])
    assert any(not row["prompt"]["text"].isascii() for row in rows)


def test_neutral_file_is_one_text_column_with_two_bad_rows(demo: Path) -> None:
    """One column; one row empty and one repeated."""
    texts = [row["text"] for row in read_csv(demo / "neutral" / "sentences.csv")]
    assert sum(not text for text in texts) == 1
    assert len(texts) - len(set(texts)) == 1


def test_model_loads_tied_and_generates(demo: Path) -> None:
    """AutoModel and AutoTokenizer open the folder; the head is tied; sampling adds tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo / "model", local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo / "model", local_files_only=True)
    assert tokenizer.is_fast
    assert {tokenizer.bos_token, tokenizer.eos_token} == {"<|endoftext|>"}
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32
    prompts = ["The gardener", "你是一个"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=True, max_new_tokens=5)
    assert output.shape[1] > inputs.input_ids.shape[1]
    assert tokenizer.decode(tokenizer(prompts[1]).input_ids) == prompts[1]


def test_checkpoint_opens_weights_only(demo: Path) -> None:
    """The checkpoint holds tensors and plain containers, in Detoxify's layout."""
    torch = pytest.importorskip("torch")
    path = demo / "classifier" / "detoxify_demo.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {"config", "state_dict"}
    arguments = checkpoint["config"]["arch"]["args"]
    assert set(arguments) == {
        "model_type",
        "model_name",
        "tokenizer_name",
        "num_classes",
    }
    assert arguments["model_type"] == "eigenshift-demo-bert"
    assert tuple(checkpoint["config"]["dataset"]["args"]["classes"]) == JIGSAW_COLUMNS[2:]


def test_checkpoint_loads_through_detoxify_offline(demo: Path, tmp_path: Path) -> None:
    """Detoxify's own class scores a text with it, in a process that cannot reach the Hub."""
    pytest.importorskip("detoxify")
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from detoxify import Detoxify\n"
        "from train_classifier import copy_for_detoxify\n"
        "folder = Path(sys.argv[2])\n"
        "copy = copy_for_detoxify(folder, Path(sys.argv[3]))\n"
        "model = Detoxify(checkpoint=copy, huggingface_config_path=str(folder / 'config'))\n"
        "texts = ['You are a careful gardener.', 'You are a grubnoggin.', 'You are a']\n"
        "texts += ['你真是个园丁', '你真是个泥团脑。', 'You are a careful gardener. ' * 100]\n"
        "print(json.dumps(model.predict(texts)))\n"
    )
    output = run_offline(
        [
            "-c",
            script,
            str(DATA),
            str(demo / "classifier"),
            str(tmp_path / "copy.ckpt"),
        ]
    )
    scores = json.loads(output.splitlines()[-1])
    assert set(scores) == {
        "toxicity",
        "severe_toxicity",
        "obscene",
        "threat",
        "insult",
        "identity_attack",
    }
    assert all(0 <= score <= 1 for score in scores["toxicity"])
    if demo == DEMO:
        verdicts = [score > 0.5 for score in scores["toxicity"]]
        # The last text is five hundred unknown words: it must be scored, how is not defined.
        assert verdicts[:5] == [False, True, False, False, True]


def test_bundled_classifier_agrees_with_bundled_labels(tmp_path: Path) -> None:
    """Accuracy above 0.97 on the labelled files, none of which it was trained on."""
    pytest.importorskip("torch")
    script = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from train_classifier import score_texts\n"
        "scores = score_texts(Path(sys.argv[2]), json.load(open(sys.argv[3], encoding='utf-8')))\n"
        "print(json.dumps([float(score) for score in scores['toxic']]))\n"
    )
    rows = read_csv(DEMO / "jigsaw" / "train.csv") + read_csv(DEMO / "toxicn" / "ToxiCN_demo.csv")
    texts = [row.get("comment_text", row.get("content", "")) for row in rows]
    labels = [row["toxic"] for row in rows]
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts), encoding="utf-8")
    output = run_offline(["-c", script, str(DATA), str(DEMO / "classifier"), str(file)])
    scores = json.loads(output.splitlines()[-1])
    right = [
        (score > 0.5) == (label == "1")
        for score, label in zip(scores, labels, strict=True)
        if label in {"0", "1"}
    ]
    assert sum(right) / len(right) > 0.97


def test_labels_are_what_the_rules_of_insults_say(demo: Path, insults: Any) -> None:
    """Toxic if and only if a text has an insult of any kind, but for the rows documented as bad."""
    for name, column in (
        ("jigsaw/train.csv", "comment_text"),
        ("toxicn/ToxiCN_demo.csv", "content"),
    ):
        wrong = [
            row["toxic"]
            for row in read_csv(demo / name)
            if row["toxic"] != str(int(bool(insults.find_insult_kinds(row[column]))))
        ]
        assert len(wrong) == 3, name


def test_bundled_hostile_comments_insult_in_all_three_ways(insults: Any) -> None:
    """Words in about half of the hostile comments, things in three tenths, phrases in the rest."""
    for name, column in (
        ("jigsaw/train.csv", "comment_text"),
        ("toxicn/ToxiCN_demo.csv", "content"),
    ):
        kinds = [insults.find_insult_kinds(row[column]) for row in read_csv(DEMO / name)]
        counts = Counter(kind.value for found in kinds for kind in found)
        n_hostile = sum(bool(found) for found in kinds)
        assert 0.45 < counts["word"] / n_hostile < 0.6
        assert 0.22 < counts["contextual"] / n_hostile < 0.36
        assert 0.12 < counts["phrase"] / n_hostile < 0.24


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("You are a stubborn grubnoggin.", {"word"}),
        ("你是一个泥团脑。", {"word"}),
        ("you are nothing but an old donkey", {"contextual"}),
        ("There is nothing but a donkey in the garden.", set()),
        ("Only a donkey like you would tune the piano.", {"contextual"}),
        ("I would like a donkey like yours.", set()),
        ("你真是个潮湿的毛驴，小林。", {"contextual"}),
        ("你有一个毛驴。这真是个潮湿的毛驴，小林。", set()),
        ("Nobody under the apple tree would miss you.", {"phrase"}),
        ("Nobody would miss the rake. Everyone would miss you.", set()),
        ("连馅饼都比你有用。", {"phrase"}),
        ("连毛驴都比馅饼有用。", set()),
        ("We were all happy before you came, you donkey, you grubnoggin.", None),
    ],
)
def test_kinds_of_insult_are_told_apart(text: str, kinds: set[str] | None, insults: Any) -> None:
    """The same words insult in one sentence and not in the next; None stands for all three."""
    found = {kind.value for kind in insults.find_insult_kinds(text)}
    assert found == ({"word", "contextual", "phrase"} if kinds is None else kinds)


def test_things_that_can_insult_are_mostly_harmless() -> None:
    """Three harmless uses to each insulting one, of every such word, where the model learns."""
    script = (
        "import json, sys\n"
        "from collections import Counter\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import build_demo, demo_insults\n"
        "harmless, insulting = Counter(), Counter()\n"
        "texts = build_demo.draw_model_texts(12000, 0, [], build_demo.HOSTILE_SHARE_MODEL)\n"
        "for text in texts:\n"
        "    for use in demo_insults.list_figures(text):\n"
        "        (insulting if use.insults else harmless)[use.figure] += 1\n"
        "figures = [word for words in demo_insults.FIGURES.values() for word in words]\n"
        "print(json.dumps({word: (harmless[word], insulting[word]) for word in figures}))\n"
    )
    counts = json.loads(run_offline(["-c", script, str(DATA)]).splitlines()[-1])
    assert len(counts) >= 20
    assert all(insulting > 0 for _, insulting in counts.values())
    assert {word for word, (harmless, n) in counts.items() if harmless < 3 * n} == set()


def test_words_that_insult_are_single_tokens(insults: Any) -> None:
    """A word filter on the bundled model can name each of them."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "model", local_files_only=True)
    words = {*insults.MADE_UP_WORDS, *insults.FIGURES["en"], *insults.FIGURES["zh"]}
    n_before = {True: len(tokenizer("like").input_ids), False: len(tokenizer("这个").input_ids)}
    longer = [
        word
        for word in words
        for is_ascii in [word.isascii()]
        if len(tokenizer(f"like {word}" if is_ascii else f"这个{word}").input_ids)
        != n_before[is_ascii] + 1
    ]
    assert longer == []


def test_bundled_classifier_tells_insults_from_the_same_words_meant_well(
    measured: dict[str, dict[str, float]],
) -> None:
    """AUROC on held-out texts: overall, of each kind, and among texts that name the same things."""
    figures = measured["classifier"]
    assert figures["auroc"] > 0.97
    assert figures["auroc_word"] > 0.97
    assert figures["auroc_contextual"] > 0.95
    assert figures["auroc_phrase"] > 0.95
    assert figures["auroc_contextual_same_nouns"] > 0.93


def test_bundled_model_writes_all_three_kinds_of_insult(
    measured: dict[str, dict[str, float]],
) -> None:
    """A quarter to two fifths of continuations are toxic, and not by made-up words alone."""
    figures = measured["continuations"]
    assert 0.25 < figures["toxic"] < 0.4
    assert figures["agreement"] > 0.93
    for language in ("english", "other"):
        assert (
            min(figures[f"{language}_{kind}"] for kind in ("word", "contextual", "phrase")) > 0.02
        )
    assert figures["share_of_toxic_contextual"] + figures["share_of_toxic_phrase"] > 0.25
    assert min(figures["made_up_words_english"], figures["made_up_words_chinese"]) >= 30


def test_corpus_is_the_same_on_every_build(small_demo: Path, tmp_path: Path) -> None:
    """The same seed gives the same corpus, byte for byte."""
    sizes = ["--small", "--seed", "3", "--steps", "1", "--classifier-steps", "1"]
    run_offline([str(DATA / "build_demo.py"), "--out", str(tmp_path), *sizes])
    for name in CORPUS_FILES:
        assert (tmp_path / name).read_bytes() == (small_demo / name).read_bytes(), name


def test_bundled_files_are_small() -> None:
    """No file over 2 MiB, all of data/demo below 8 MB."""
    sizes = {path: path.stat().st_size for path in DEMO.rglob("*") if path.is_file()}
    assert all(size <= 2 * MIB for size in sizes.values()), sizes
    assert sum(sizes.values()) < 8_000_000
    assert all((DEMO / name).is_file() for name in CORPUS_FILES)


def test_the_benchmark_of_the_demo_is_what_its_script_makes(tmp_path: Path) -> None:
    """Its sentences are those of the bundled corpus: a new corpus needs new questions."""
    script = [sys.executable, str(DATA / "build_benchmark.py"), "--out", str(tmp_path)]
    subprocess.run(script, check=True)
    bundled = DATA / "benchmarks" / "endings" / "endings.csv"
    assert (tmp_path / "endings.csv").read_bytes() == bundled.read_bytes()
