"""What `bench_gpu.py` measures: each case yields what it finds, as it finds it.

Random weights and made-up texts at the sizes given; nothing is fetched, and nothing is judged here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

KL_SHARES = (3, 4, 6, 8, 12, 16, 24)
"""Directions removed by the arms beside the base, of 256 dimensions: each moves the mean KL by
hundredths of a nat, like patches in use (`bench_generation.py`)."""
CONFIDENCE = 0.95
OURS, SVD = "our decomposition", "torch.linalg.svd"

Findings = Iterator[tuple[str, Any]]
"""("begin", variant) before each variant, then (key, figure) for what it gave."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        shape: Of the model, names as in LlamaConfig.
        vocab: Of the model.
        n_texts: Read by extraction, 20 to 200 tokens each.
        tokens_per_batch: Of a forward pass.
        n_prompts: Continued by generation, 8 to 24 tokens each.
        n_samples: Continuations of each.
        n_samples_screened: Likewise where edits are foretold from them.
        n_tokens: New tokens of each.
        sequences_per_batch: Generated at once, over all arms.
        n_trials: Edits that are foretold.
        matrix: Samples and units of the neuron statistics.
        heads: (vocab, hidden) of the heads that are decomposed.
        rounds: Repetitions of what takes seconds; medians count.
    """

    shape: Mapping[str, int]
    vocab: int
    n_texts: int
    tokens_per_batch: int
    n_prompts: int
    n_samples: int
    n_samples_screened: int
    n_tokens: int
    sequences_per_batch: int
    n_trials: int
    matrix: tuple[int, int]
    heads: tuple[tuple[int, int], ...]
    rounds: int = 3


FULL = Sizes(
    shape={
        "hidden_size": 4_096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    vocab=32_000,
    n_texts=512,
    tokens_per_batch=16_384,
    n_prompts=32,
    n_samples=8,
    n_samples_screened=32,
    n_tokens=20,
    sequences_per_batch=2_048,
    n_trials=30,
    matrix=(20_000, 3_072),
    heads=((32_000, 4_096), (128_256, 8_192)),
)
SMALL = Sizes(
    shape={
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    vocab=300,
    n_texts=6,
    tokens_per_batch=512,
    n_prompts=3,
    n_samples=2,
    n_samples_screened=3,
    n_tokens=3,
    sequences_per_batch=64,
    n_trials=3,
    matrix=(200, 16),
    heads=((400, 32), (500, 48)),
    rounds=1,
)


class Stopwatch:
    """Seconds and peak memory of pieces of work, the device's queue included.

    Args:
        device: Where they run, a `torch.device`.
    """

    def __init__(self, device: Any) -> None:
        self._device = device

    def take(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of the work, and what it returned."""
        self._wait()
        started = time.perf_counter()
        found = work()
        self._wait()
        return time.perf_counter() - started, found

    def take_median(self, work: Callable[[], Any], rounds: int) -> float:
        """Median seconds of some rounds, after one to warm up."""
        self.take(work)
        return statistics.median(self.take(work)[0] for _ in range(rounds))

    def read_peak(self) -> float:
        """Most memory held since it was last asked for, GB: the device's; a CPU's whole process."""
        import torch

        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return round(peak / 1e9, 2)
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) * 1024 / 1e9, 2)

    def _wait(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def make_model(sizes: Sizes, device: Any) -> Any:
    """A random Llama in bfloat16 that is made where it runs, with one token for each word."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from eigenshift.model.loading import wrap_model
    from tests.benchmarks.bench_extraction import make_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(**sizes.shape, vocab_size=sizes.vocab)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return wrap_model(model, make_tokenizer(sizes.vocab), model_id="random", digest="random")


def make_texts(n_texts: int, shortest: int, longest: int, vocab: int) -> list[str]:
    """Random words, so many each."""
    import numpy as np

    generator = np.random.default_rng(0)
    lengths = generator.integers(shortest, longest + 1, n_texts)
    return [" ".join(f"w{word}" for word in generator.integers(1, vocab, n)) for n in lengths]


def measure_extraction(sizes: Sizes, device: Any) -> Findings:
    """Tokens per second of the bare trunk, of pooling, and of a shard with its table written."""
    import pyarrow as pa
    import torch

    from eigenshift.detection.activations import extract_shard
    from eigenshift.detection.pooling import pool_texts
    from eigenshift.model.batching import plan_dense_batches
    from eigenshift.model.encoding import encode_read_texts
    from eigenshift.model.taps import find_taps
    from eigenshift.model.tokens import pad_tokens
    from eigenshift.settings import ActivationSettings
    from eigenshift.store.workspace import Workspace

    language_model, settings = make_model(sizes, device), ActivationSettings()
    words = make_texts(sizes.n_texts, 20, 200, sizes.vocab)
    samples = pa.table({"sample_id": [f"s{place}" for place in range(len(words))], "text": words})
    texts, _ = encode_read_texts(language_model, words, settings.max_tokens)
    rows = [text.token_ids for text in texts]

    def run_bare() -> None:
        with torch.inference_mode():
            for batch in plan_dense_batches([len(row) for row in rows], sizes.tokens_per_batch):
                padded, mask = pad_tokens([rows[place] for place in batch], 0, "right")
                language_model.trunk(
                    input_ids=padded.to(device), attention_mask=mask.to(device), use_cache=False
                )

    def pool() -> None:
        taps = find_taps(language_model.model, [item.site for item in settings.sites], None)
        pool_texts(
            language_model,
            taps,
            texts,
            settings.sites,
            sizes.tokens_per_batch,
            settings.precision,
        )

    def extract() -> None:
        with tempfile.TemporaryDirectory() as folder:
            workspace = Workspace(Path(folder))
            extract_shard(language_model, samples, settings, sizes.tokens_per_batch, workspace)

    watch, n_tokens = Stopwatch(device), sum(map(len, rows))
    for name, work in (("bare", run_bare), ("pooled", pool), ("shard", extract)):
        yield "begin", name
        seconds = watch.take_median(work, sizes.rounds)
        yield f"{name}_tokens_per_second", n_tokens / seconds
        yield f"{name}_peak_gb", watch.read_peak()


def make_edits(sizes: Sizes) -> list[Any]:
    """Edits of the head that remove random directions, one for each of `KL_SHARES`."""
    import numpy as np

    from eigenshift.patches.edits import HeadEdit

    hidden = sizes.shape["hidden_size"]
    ranks = [max(1, hidden * share // 256) for share in KL_SHARES]
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.standard_normal((hidden, max(ranks))))[0]
    return [HeadEdit.scale_directions(directions[:, :rank], 0.0) for rank in ranks]


def make_arms(language_model: Any, sizes: Sizes) -> dict[str, Any]:
    """The base and seven patches of its head."""
    from eigenshift.generation.continuations import LoadedArm
    from eigenshift.patches.edits import ModelEdit
    from eigenshift.patches.patching import make_patch

    arms = {"base": LoadedArm(None)}
    for place, edit in enumerate(make_edits(sizes)):
        patch = make_patch(
            language_model, ModelEdit(edit), model_id="random", intervention="random"
        )
        arms[f"patch {place}"] = LoadedArm(patch)
    return arms


def make_prompts(sizes: Sizes) -> Any:
    """Prompts as generation reads them."""
    import pyarrow as pa

    texts = make_texts(sizes.n_prompts, 8, 24, sizes.vocab)
    ids = [f"p{place}" for place in range(len(texts))]
    return pa.table({"prompt_id": ids, "language": ["en"] * len(texts), "prompt": texts})


def set_sampling(sizes: Sizes) -> Any:
    """How continuations are drawn; none ends early, so that all draw as many tokens."""
    from eigenshift.settings import SamplingSettings

    n_tokens = sizes.n_tokens
    return SamplingSettings(n_samples=sizes.n_samples, n_tokens=n_tokens, min_tokens=n_tokens)


def generate_ours(language_model: Any, arms: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The continuations of some arms, one table each."""
    import pyarrow.parquet as pq

    from eigenshift.generation.continuations import generate_continuations
    from eigenshift.stages import tables
    from eigenshift.store.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / str(number) for number, name in enumerate(arms)}
        for place in places.values():
            place.mkdir()
        for _ in generate_continuations(
            language_model,
            make_prompts(sizes),
            arms,
            set_sampling(sizes),
            sequences_per_batch=sizes.sequences_per_batch,
            workspaces={name: Workspace(place) for name, place in places.items()},
        ):
            pass
        return {
            name: pq.read_table(place / tables.CONTINUATIONS.file) for name, place in places.items()
        }


def generate_theirs(language_model: Any, sizes: Sizes) -> None:
    """The base's continuations by transformers' own loop, as many rows at once."""
    import torch

    from eigenshift.generation.continuations import encode_prompts
    from eigenshift.model.tokens import pad_tokens

    settings = set_sampling(sizes)
    prompts = encode_prompts(language_model, make_prompts(sizes), settings)
    n_at_once = max(1, sizes.sequences_per_batch // sizes.n_samples)
    for first in range(0, len(prompts), n_at_once):
        rows = [prompt.token_ids for prompt in prompts[first : first + n_at_once]]
        padded, mask = pad_tokens(rows, 0, "left")
        with torch.inference_mode():
            language_model.model.generate(
                input_ids=padded.to(language_model.device),
                attention_mask=mask.to(language_model.device),
                do_sample=True,
                top_p=settings.top_p,
                top_k=0,
                temperature=settings.temperature,
                max_new_tokens=sizes.n_tokens,
                min_new_tokens=sizes.n_tokens,
                num_return_sequences=sizes.n_samples,
                pad_token_id=0,
            )


def measure_generation(sizes: Sizes, device: Any) -> Findings:
    """Tokens per second of one arm, of eight together (all of theirs), and of `generate`."""
    language_model = make_model(sizes, device)
    arms = make_arms(language_model, sizes)
    one, watch = {"base": arms["base"]}, Stopwatch(device)
    n_tokens = sizes.n_prompts * sizes.n_samples * sizes.n_tokens
    variants: dict[str, tuple[int, Callable[[], Any]]] = {
        "one_arm": (1, lambda: generate_ours(language_model, one, sizes)),
        "generate": (1, lambda: generate_theirs(language_model, sizes)),
        "eight_arms": (len(arms), lambda: generate_ours(language_model, arms, sizes)),
    }
    for name, (n_arms, work) in variants.items():
        yield "begin", name
        seconds = watch.take_median(work, sizes.rounds)
        yield f"{name}_tokens_per_second", n_arms * n_tokens / seconds
        yield f"{name}_seconds", seconds
        yield f"{name}_peak_gb", watch.read_peak()
    yield "begin", "equal continuations"
    drawn = {
        name: table["token_ids"].to_pylist()
        for name, table in generate_ours(language_model, arms, sizes).items()
    }
    base = drawn.pop("base")
    equal = [a == b for found in drawn.values() for a, b in zip(found, base, strict=True)]
    yield "share_equal_to_base", sum(equal) / len(equal)


def measure_screening(sizes: Sizes, device: Any) -> Findings:
    """Seconds of foretelling edits from one arm's continuations, and of generating these."""
    import numpy as np

    from eigenshift.evaluation.bootstrap import draw_counts
    from eigenshift.evaluation.likelihood_ratios import DrawnText, measure_log_ratios
    from eigenshift.evaluation.predicted_rates import choose_texts, predict_rate
    from eigenshift.patches.edits import ModelEdit

    sizes = replace(sizes, n_samples=sizes.n_samples_screened)
    language_model, watch = make_model(sizes, device), Stopwatch(device)
    base = {"base": make_arms(language_model, sizes)["base"]}
    yield "begin", "one arm"
    generate_ours(language_model, base, sizes)
    one_arm, tables = watch.take(lambda: generate_ours(language_model, base, sizes))
    yield "one_arm_seconds", one_arm
    yield "begin", "edits foretold"
    table, generator = tables["base"], np.random.default_rng(0)
    is_toxic = generator.random(len(table)) < 0.4  # nobody judges random words
    prompts = np.repeat(np.arange(sizes.n_prompts), sizes.n_samples)
    sample = choose_texts(is_toxic, prompts, sizes.n_prompts, seed=0)
    tokens = zip(table["prompt_token_ids"].to_pylist(), table["token_ids"].to_pylist(), strict=True)
    drawn = [DrawnText(*pair) for pair in tokens]
    texts = [drawn[place] for place in sample.places]
    edits = make_edits(sizes)
    trials = [
        ModelEdit(edits[place % len(edits)]).scale(1 - place / sizes.n_trials)
        for place in range(sizes.n_trials)
    ]
    counts = draw_counts(sizes.n_prompts, 1000, 0)

    def foretell() -> list[Any]:
        ratios = measure_log_ratios(
            language_model,
            texts,
            trials,
            set_sampling(sizes),
            tokens_per_batch=sizes.tokens_per_batch,
        )
        judged = is_toxic[sample.places]
        return [predict_rate(found, judged, sample, counts, CONFIDENCE) for found in ratios]

    seconds = watch.take_median(foretell, 1)
    yield "foretelling_seconds", seconds
    yield "n_foretold", float(len(trials))
    yield "peak_gb", watch.read_peak()


def sort_on_device(values: Any, is_toxic: Any, device: Any) -> Any:
    """AUROC of every unit from average ranks, the matrix sorted on the device, shape (unit,)."""
    import torch

    table = torch.from_numpy(values).to(device).T.contiguous()
    toxic = torch.from_numpy(is_toxic).to(device)
    found = []
    for block in table.split(1_024):
        ordered, places = block.float().sort(1)
        below = torch.searchsorted(ordered, ordered)
        up_to = torch.searchsorted(ordered, ordered, right=True)
        ranks = (below + up_to + 1).double() / 2
        found.append((ranks * toxic[places]).sum(1))
    n_toxic = int(is_toxic.sum())
    won = torch.cat(found).cpu().numpy() - n_toxic * (n_toxic + 1) / 2
    return won / (n_toxic * (len(is_toxic) - n_toxic))


def measure_neurons(sizes: Sizes, device: Any) -> Findings:
    """Seconds from Parquet to statistics by ours, and to AUROCs alone by a sort on the device."""
    import numpy as np

    from tests.benchmarks.bench_neuron_statistics import make_data, prepare, read_matrix

    watch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        make_data(folder, *sizes.matrix)
        yield "begin", "from scratch"
        aurocs = None
        seconds = []
        for round_ in range(sizes.rounds):
            out = Path(name) / f"out-{round_}"
            out.mkdir()
            spent, aurocs = watch.take(prepare("from_scratch", folder, out))
            seconds.append(spent)
        yield "from_scratch_seconds", statistics.median(seconds)
        yield "begin", "sort on the device"

        def sort() -> Any:
            return sort_on_device(*read_matrix(folder), device)

        sort()
        spent, sorted_aurocs = watch.take(sort)
        yield "sort_seconds", spent
        yield "sort_peak_gb", watch.read_peak()
        yield "largest_difference", float(np.abs(aurocs - sorted_aurocs).max())


def make_head(shape: tuple[int, int], device: Any) -> Any:
    """A dense head with a falling spectrum and a strong mean direction, float32."""
    import torch

    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> Any:
        return torch.randn(*size, generator=generator, device=device)

    hidden = shape[1]
    weight = draw(*shape) * torch.logspace(0, -1, hidden, device=device) + draw(hidden) / 2
    for _ in range(6):  # reflections turn the axes, so that the singular vectors are dense
        axis = draw(hidden)
        axis /= axis.norm()
        weight -= torch.outer(weight @ axis, 2 * axis)
    return weight


def measure_decomposition(shape: tuple[int, int], sizes: Sizes, device: Any) -> Findings:
    """Seconds of our decomposition in float64 and of torch.linalg.svd in float32, on the device."""
    import torch

    from eigenshift.components.decomposition import TensorRows, decompose_rows

    weight, watch = make_head(shape, device), Stopwatch(device)
    torch.linalg.svd(weight[:64, :64])  # the library is loaded before the clock starts
    watch.read_peak()
    yield "begin", OURS
    seconds, found = watch.take(lambda: decompose_rows(TensorRows(weight), str(device)))
    yield "ours_seconds", seconds
    yield "ours_peak_gb", watch.read_peak()
    yield "begin", SVD
    seconds, (_, sigma, _) = watch.take(lambda: torch.linalg.svd(weight, full_matrices=False))
    yield "svd_seconds", seconds
    yield "svd_peak_gb", watch.read_peak()
    expected = torch.from_numpy(found.sigma)
    yield "largest_difference", float((sigma.cpu().double() / expected - 1).abs().max())


def name_shape(shape: Sequence[int]) -> str:
    """As people write it."""
    return " x ".join(f"{n:,}" for n in shape)


def list_cases(sizes: Sizes) -> dict[str, Callable[[Any], Findings]]:
    """Every case by name, given a device; what is likeliest to be stopped comes last."""
    cases: dict[str, Callable[[Any], Findings]] = {
        "extraction": lambda device: measure_extraction(sizes, device),
        "generation": lambda device: measure_generation(sizes, device),
        "screening": lambda device: measure_screening(sizes, device),
        "neurons": lambda device: measure_neurons(sizes, device),
    }
    for shape in sizes.heads:
        cases[f"decomposition {name_shape(shape)}"] = lambda device, shape=shape: (
            measure_decomposition(shape, sizes, device)
        )
    return cases
