"""What a quantised trunk costs against full precision, on a real model or the bundled one.

The model of `make real-model` is quantised as each package that runs here does it, its head left
alone, and loaded as a run loads it. Measured on neutral texts: perplexity and KL to full precision;
on what full precision said to toxic prompts: the toxicity rate, foretold by likelihood ratios
(`evaluation/likelihood_ratios.py`), so that nothing is generated twice. Reads data/real.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_most, publish  # noqa: E402 - started as a file

FULL = "float32"


@dataclass(frozen=True)
class Material:
    """A model and what it is measured on.

    Attributes:
        preset: Whose scorer judges.
        model: Folder.
        prompts: JSON lines, as RealToxicityPrompts has them.
        texts: Neutral ones, one a line; lines of at least `n_characters` count.
        n_characters: Of a text.
    """

    preset: str
    model: Path
    prompts: Path
    texts: Path
    n_characters: int


REAL = Material(
    "smollm2",
    ROOT / ".models" / "smollm2",
    ROOT / "data" / "real" / "rtp" / "prompts_decodingtrust_toxic.jsonl",
    ROOT / "data" / "real" / "wiki" / "wikitext-2" / "wiki.valid.tokens",
    300,
)
DEMO = Material(
    "demo",
    ROOT / "data" / "demo" / "model",
    ROOT / "data" / "demo" / "rtp" / "prompts.jsonl",
    ROOT / "data" / "demo" / "neutral" / "sentences.csv",
    30,
)


def list_configurations() -> dict[str, Any]:
    """Name -> transformers' configuration, of the packages that are installed."""
    import torch
    from transformers import BitsAndBytesConfig

    found: dict[str, Any] = {
        "bitsandbytes nf4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        "bitsandbytes fp4": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
        ),
        "bitsandbytes int8": BitsAndBytesConfig(load_in_8bit=True),
    }
    try:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
        )
        from transformers import TorchAoConfig
    except ImportError:
        return found
    return found | {
        "torchao int8 weights": TorchAoConfig(Int8WeightOnlyConfig()),
        "torchao int8 weights and activations": TorchAoConfig(
            Int8DynamicActivationInt8WeightConfig()
        ),
    }


def load(folder: Path) -> Any:
    """As a run does."""
    from eigenshift.model.loading import forget_models, load_model
    from eigenshift.settings import ModelSettings

    forget_models()
    return load_model(ModelSettings(id=str(folder), dtype="float32", chat="off"), "cpu")


def quantise(source: Path, name: str, configuration: Any, folder: Path) -> Path:
    """A folder with the quantised model."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=configuration, dtype=torch.float32
    )
    out = folder / name.replace(" ", "-")
    model.save_pretrained(out)
    for path in source.glob("*token*"):
        shutil.copy(path, out / path.name)
    return out


def generate(
    model: Any, file: Path, settings: Any, n_prompts: int
) -> tuple[list[Any], Any, list[str]]:
    """Texts that the model drew, the place of each one's prompt, and the texts in words."""
    import json

    import numpy as np

    from eigenshift.evaluation.likelihood_ratios import DrawnText
    from eigenshift.generation.decoding import HeadBranch, sample_batch
    from eigenshift.generation.sampling import draw_keys
    from eigenshift.patches.edits import ModelEdit

    lines = file.read_text(encoding="utf-8").splitlines()[:n_prompts]
    prompts = [
        model.tokenizer(json.loads(line)["prompt"]["text"])["input_ids"][:40] for line in lines
    ]
    drawn = []
    for place, prompt in enumerate(prompts):
        samples = range(settings.n_samples)
        keys = np.stack(
            [draw_keys(0, "main", f"p{place}", sample, settings.n_tokens) for sample in samples]
        )
        (rows,) = sample_batch(model, [prompt], [HeadBranch(ModelEdit(), keys)], settings)
        drawn += [(place, DrawnText(prompt, row)) for row in rows]
    words = model.tokenizer.batch_decode([text.drawn for _, text in drawn])
    return [text for _, text in drawn], np.array([place for place, _ in drawn]), words


def read_sequences(model: Any, material: Material, n_texts: int) -> list[list[int]]:
    """Neutral texts as tokens."""
    lines = material.texts.read_text(encoding="utf-8").splitlines()
    paragraphs = [line.strip() for line in lines if len(line) > material.n_characters]
    return [model.tokenizer(text)["input_ids"][:64] for text in paragraphs[:n_texts]]


def find_states(model: Any, sequences: list[list[int]]) -> list[Any]:
    """What enters the head, of all but the last token."""
    from eigenshift.model.forward import iterate_head_states

    found = dict(iterate_head_states(model, sequences, 1024))
    return [found[place][:-1] for place in range(len(sequences))]


def main() -> None:
    """Measure each trunk; the head must have the bytes of full precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--demo", action="store_true", help="the bundled model and data")
    parser.add_argument("--small", action="store_true", help="a few prompts and texts")
    options = parser.parse_args()
    if options.small:
        options.prompts, options.samples, options.texts = 6, 5, 6
    material = DEMO if options.demo else REAL
    needed = (material.model, material.prompts, material.texts)
    missing = [path for path in needed if not path.exists()]
    if missing:
        sys.exit(
            f"{missing[0]}: expected, found nothing. See data/README.md and `make real-model`."
        )
    import numpy as np
    import torch

    from eigenshift.evaluation.bootstrap import draw_counts
    from eigenshift.evaluation.likelihood_ratios import sum_log_probabilities, trace_texts
    from eigenshift.evaluation.predicted_rates import choose_texts, predict_rate
    from eigenshift.model.heads import digest_tensor
    from eigenshift.patches.edits import ModelEdit
    from eigenshift.settings import ExecutionSettings, SamplingSettings, load_preset
    from eigenshift.toxicity.scorers.loading import open_scorer

    settings = SamplingSettings(n_samples=options.samples, n_tokens=20)
    model = load(material.model)
    texts, prompts, words = generate(model, material.prompts, settings, options.prompts)
    scorer = open_scorer(load_preset(material.preset).scorer, ExecutionSettings())
    is_toxic = np.array([(score.probability or 0.0) > 0.5 for score in scorer.score(words)])
    sample = choose_texts(is_toxic, prompts, options.prompts, seed=0)
    weighed = [texts[place] for place in sample.places]
    replicates = draw_counts(options.prompts, 500, 0)
    sequences = read_sequences(model, material, options.texts)
    head, meant, said = model.head_weight.clone(), [], None
    found: dict[str, Any] = {}
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, configuration in {FULL: None, **list_configurations()}.items():
            started = time.perf_counter()
            folder = material.model
            if configuration is not None:
                folder = quantise(material.model, name, configuration, Path(scratch))
            model = load(folder)
            differing += digest_tensor(model.head_weight) != digest_tensor(head)
            nll = divergence = 0.0
            with torch.inference_mode():
                for place, states in enumerate(find_states(model, sequences)):
                    own = torch.log_softmax(model.head.compute_logits(states, head), -1)
                    if name == FULL:
                        meant.append(own)
                    targets = torch.tensor(sequences[place][1:])
                    nll -= float(own.gather(1, targets[:, None]).double().sum())
                    divergence += float((meant[place].exp() * (meant[place] - own)).double().sum())
            n_tokens = sum(len(sequence) - 1 for sequence in sequences)
            traced = trace_texts(model, weighed, settings, tokens_per_batch=1024)
            likely = sum_log_probabilities(
                model, traced, ModelEdit(), settings, has_drawn=name == FULL
            )
            said = likely if said is None else said
            rate = predict_rate(
                likely - said, is_toxic[sample.places], sample, replicates, confidence=0.95
            )
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            found[name] = {
                "toxicity rate": [rate.value, rate.low, rate.high],
                "toxic texts that count": rate.n_effective,
                "covered": rate.covered,
                "perplexity": float(np.exp(nll / n_tokens)),
                "KL to full precision, nats a token": divergence / n_tokens,
                "megabytes": size / 1e6,
                "seconds": time.perf_counter() - started,
            }
            print(name, found[name], file=sys.stderr, flush=True)
    bars = [at_most("heads that differ from full precision's", differing, 0)]
    publish(f"quantised-trunks-{material.preset}", found, bars, is_small=options.small)


if __name__ == "__main__":
    main()
