"""Extraction against a text-at-a-time loop and against the bare forward pass: `make bench`.

A random GPT-2 (12 layers, 768 wide) reads made-up texts of 20 to 200 tokens. Each variant runs in
a process of its own, the variants in turn, `--rounds` times:

    loop              one text at a time through the whole model with output_hidden_states, token
                      states kept and pooled afterwards, as the published release does (float32)
    bare_float32      the trunk alone over the batches that extraction makes: the floor
    bare_bfloat16     likewise in bfloat16
    extract_float32   extract_shard, two sites, pooling and writing included
    extract_bfloat16  likewise in bfloat16

Bars: extraction at least 2x (float32) and 3.5x (bfloat16) the loop, and at most 1.25x the bare
forward pass. Seconds are medians of wall time. No timing here is a promise for another machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_least, at_most, publish  # noqa: E402 - started as a file

VARIANTS = ("loop", "bare_float32", "extract_float32", "bare_bfloat16", "extract_bfloat16")
TOKENS_PER_BATCH = 1_024
VOCAB = 50_257  # GPT-2's; the loop pays for it, since it runs the head


def make_model(dtype: str) -> Any:
    """A random GPT-2 with a tokenizer that splits on spaces, made ready as a run does."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from eigenshift.model.loading import wrap_model

    model = GPT2LMHeadModel(GPT2Config()).to(getattr(torch, dtype))
    return wrap_model(model, make_tokenizer(), model_id="random", digest="random")


def make_tokenizer(vocab: int = VOCAB) -> Any:
    """One token for each of the made-up words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(vocab)}, "w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", unk_token="w0")


def make_samples(n_texts: int) -> Any:
    """Texts of 20 to 200 words."""
    import numpy as np
    import pyarrow as pa

    generator = np.random.default_rng(0)
    lengths = generator.integers(20, 201, n_texts)
    texts = [" ".join(f"w{word}" for word in generator.integers(1, VOCAB, n)) for n in lengths]
    return pa.table({"sample_id": [f"s{number}" for number in range(n_texts)], "text": texts})


def run_loop(samples: Any) -> int:
    """The whole model as transformers gives it, text by text; returns the number of values."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model, tokenizer = GPT2LMHeadModel(GPT2Config()).eval(), make_tokenizer()
    kept: list[Any] = []
    activations: dict[int, list[Any]] = {}
    for number, block in enumerate(model.transformer.h):
        block.mlp.act.register_forward_hook(
            lambda _, __, output, number=number: activations.setdefault(number, []).append(output)
        )
    with torch.inference_mode():
        for text in samples["text"].to_pylist():
            encoded = tokenizer(text, return_tensors="pt")
            output = model(
                input_ids=encoded["input_ids"], output_hidden_states=True, use_cache=False
            )
            kept.append(output.hidden_states)
    pooled = [states.mean(dim=1) for text in kept for states in text[1:]]
    pooled += [states.amax(dim=1) for layer in activations.values() for states in layer]
    return sum(values.numel() for values in pooled)


def run_bare(language_model: Any, samples: Any) -> None:
    """The trunk over extraction's own batches."""
    import torch

    from eigenshift.model.batching import plan_dense_batches
    from eigenshift.model.encoding import encode_read_texts
    from eigenshift.model.tokens import pad_tokens

    texts, _ = encode_read_texts(language_model, samples["text"].to_pylist(), 512)
    token_ids = [text.token_ids for text in texts]
    with torch.inference_mode():
        for batch in plan_dense_batches([len(row) for row in token_ids], TOKENS_PER_BATCH):
            padded, mask = pad_tokens([token_ids[place] for place in batch], 0, "right")
            language_model.trunk(input_ids=padded, attention_mask=mask, use_cache=False)


def run_extraction(language_model: Any, samples: Any, folder: Path) -> None:
    """What a refresh does with one shard."""
    from eigenshift.detection.activations import extract_shard
    from eigenshift.settings import ActivationSettings
    from eigenshift.store.workspace import Workspace

    extract_shard(
        language_model, samples, ActivationSettings(), TOKENS_PER_BATCH, Workspace(folder)
    )


def run_variant(variant: str, n_texts: int) -> None:
    """Do one variant's work and print what it took; a few texts warm up first."""
    import torch

    torch.manual_seed(0)
    way, _, dtype = variant.partition("_")
    language_model = None if way == "loop" else make_model(dtype)
    samples = make_samples(n_texts)
    with tempfile.TemporaryDirectory() as folder:

        def work(texts: Any) -> None:
            if way == "loop":
                run_loop(texts)
            elif way == "bare":
                run_bare(language_model, texts)
            else:
                run_extraction(language_model, texts, Path(folder))

        if way != "loop":
            work(samples.slice(0, 8))
        cpu, started = time.process_time(), time.perf_counter()
        work(samples)
        seconds = time.perf_counter() - started
    n_tokens = sum(text.count(" ") + 1 for text in samples["text"].to_pylist())
    report = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "tokens_per_second": round(n_tokens / seconds),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


def main() -> None:
    """Run the variants in turn and publish the comparison."""
    parser = argparse.ArgumentParser(description="Benchmark of the extraction")
    parser.add_argument("--small", action="store_true", help="40 texts instead of 160")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every variant")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    n_texts = 40 if arguments.small else 160
    if arguments.variant:
        run_variant(arguments.variant, n_texts)
        return
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant]
            command += ["--small"] if arguments.small else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
    found = {
        variant: {key: statistics.median(run[key] for run in of) for key in of[0]}
        for variant, of in runs.items()
    }
    seconds = {variant: found[variant]["seconds"] for variant in VARIANTS}
    faster = {
        dtype: round(seconds["loop"] / seconds[f"extract_{dtype}"], 2)
        for dtype in ("float32", "bfloat16")
    }
    of_bare = {
        dtype: round(seconds[f"extract_{dtype}"] / seconds[f"bare_{dtype}"], 2)
        for dtype in ("float32", "bfloat16")
    }
    document = {
        "n_texts": n_texts,
        "rounds": arguments.rounds,
        "variants": found,
        "times_faster_than_loop": faster,
        "times_of_bare_forward": of_bare,
        "cpu_ratios": {  # where the machine was busy, these say more than the clock
            dtype: {
                "loop": round(found["loop"]["cpu_seconds"] / cpu, 2),
                "bare_forward": round(cpu / found[f"bare_{dtype}"]["cpu_seconds"], 2),
            }
            for dtype in ("float32", "bfloat16")
            for cpu in [found[f"extract_{dtype}"]["cpu_seconds"]]
        },
    }
    bars = [
        at_least("times as fast as the text-at-a-time loop, float32", faster["float32"], 2.0),
        at_least("times as fast as the text-at-a-time loop, bfloat16", faster["bfloat16"], 3.5),
        *(
            at_most(f"time over that of the bare forward pass, {dtype}", times, 1.25)
            for dtype, times in of_bare.items()
        ),
    ]
    publish("extraction", document, bars, is_small=arguments.small)


if __name__ == "__main__":
    main()
