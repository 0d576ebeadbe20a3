"""The demo assets: the build script in its small preset, and what is bundled under data/demo."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

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
    assert 0.35 < sum(score is not None and score > 0.5 for score in scores) / len(rows) < 0.65
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
