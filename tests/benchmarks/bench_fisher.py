"""Fisher components: choosing them for a 7B head, and the evidence of the deep variant.

The head's choice is set against `choose_within_budget`, the choice among singular components, on
the same states: 2,000 toxic and 20,000 harmless positions of a head of 32,000 x 4,096. What takes
longer than `PATIENCE` times ours is stopped there, and the ratio is then a bound. The deep
variant's evidence is set against plain forward passes over the same texts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from bars import at_most, publish
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from eigenshift.components import calibration
from eigenshift.components.budget_texts import BudgetTexts
from eigenshift.components.calibration import CalibrationStates, ToxicStates
from eigenshift.components.choice import choose_within_budget
from eigenshift.model.forward import iterate_head_states
from eigenshift.model.gradients import HEAD
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.patches.fisher.deep_study import DeepStudy
from eigenshift.patches.fisher.evidence import FisherEvidence, ToxicTexts
from eigenshift.patches.fisher.head_study import HeadStudy
from eigenshift.patches.fisher.rounds import spend_budget

N_TOKENS = 100
"""Of each harmless text."""
N_TERMS = 32
PATIENCE = 2.2
BUDGET = 0.05


class NoTokenizer:
    """All that a model asks of its tokenizer where only tokens are given."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self) -> int:
        return 3


def make_model(hidden: int, vocab: int, n_layers: int) -> LanguageModel:
    """A random Llama; of the head's benchmark only the head matters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=int(hidden * 2.7),
        num_hidden_layers=n_layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    return wrap_model(
        model, NoTokenizer(), model_id="random", digest=f"{hidden}-{vocab}-{n_layers}"
    )


def draw_states(model: LanguageModel, n_toxic: int, n_harmless: int) -> dict[str, Any]:
    """States as a trained head sees them: those before a toxic token lean towards its row."""
    generator = torch.Generator().manual_seed(1)
    weight = model.head_weight.detach()
    vocab, hidden = weight.shape
    scale = 8.0 / float(weight.norm(dim=1).mean())

    def draw(targets: Tensor) -> Tensor:
        noise = torch.randn(len(targets), hidden, generator=generator)
        return noise + scale * weight[targets] / weight[targets].norm(dim=1, keepdim=True)

    tokens = torch.arange(100, 160)
    of_toxic = tokens[torch.randint(0, len(tokens), (n_toxic,), generator=generator)]
    following = torch.randint(0, vocab, (n_harmless,), generator=generator)
    return {
        "toxic": ToxicStates(draw(of_toxic), tokens, torch.ones(n_toxic)),
        "states": draw(following),
        "targets": following,
    }


def choose_fisher(model: LanguageModel, drawn: dict[str, Any]) -> dict[str, float]:
    """Seconds of the whole choice in the Fisher metric, three rounds, from states."""
    states, targets = drawn["states"], drawn["targets"]
    n_texts = len(states) // N_TOKENS
    first = [0, *targets[: N_TOKENS * n_texts].tolist()]
    texts = [first[N_TOKENS * i : N_TOKENS * (i + 1) + 1] for i in range(n_texts)]

    def give_states(
        _model: LanguageModel, sequences: Sequence[Sequence[int]], _tokens: int
    ) -> Iterator[tuple[int, Tensor]]:
        for place in range(len(sequences)):
            rows = states[N_TOKENS * place : N_TOKENS * (place + 1)]
            yield place, torch.cat([rows, rows[-1:]])

    calibration.iterate_head_states = give_states
    n_toxic = len(drawn["toxic"].states)
    toxic = ToxicTexts([], [], [], drawn["toxic"], torch.arange(n_toxic))
    harmless = BudgetTexts({"neutral": texts})
    started = time.perf_counter()
    study = HeadStudy(model, FisherEvidence(toxic, harmless, harmless), N_TERMS, tokens_per_batch=1)
    prepared = time.perf_counter() - started
    edit = spend_budget(study, 3, BUDGET)
    seconds = time.perf_counter() - started
    share = float(study.measure(edit))
    return {"seconds": seconds, "preparing_seconds": prepared, "rise": share}


def choose_singular(sizes: tuple[int, int, int, int], queue: Any) -> None:
    """Seconds of the choice among singular components; those of the decomposition do not count."""
    hidden, vocab, n_toxic, n_harmless = sizes
    model = make_model(hidden, vocab, 1)
    drawn = draw_states(model, n_toxic, n_harmless)
    _, _, vt = torch.svd_lowrank(model.head_weight.detach(), q=160, niter=1)
    v = vt.double().numpy()
    harmless = CalibrationStates(drawn["states"], drawn["targets"])
    gains = np.abs(drawn["toxic"].states.double().numpy().mean(0) @ v)
    candidates = [int(index) for index in np.argsort(-gains)]
    queue.put("started")
    started = time.perf_counter()
    choose_within_budget(
        model,
        [harmless],
        drawn["toxic"],
        candidates,
        v,
        min_factor=0.0,
        n_steps=8,
        max_perplexity_increase=BUDGET,
        max_components=64,
    )
    queue.put(time.perf_counter() - started)


def time_singular(sizes: tuple[int, int, int, int], patience: float) -> float | None:
    """Its seconds, None where it was stopped after so many."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, stopped
    queue = context.Queue()
    process = context.Process(target=choose_singular, args=(sizes, queue))
    process.start()
    queue.get()
    try:
        return float(queue.get(timeout=patience))
    except Exception:  # noqa: BLE001 - queue.Empty of another context
        return None
    finally:
        process.terminate()
        process.join()


def time_deep(n_tokens: int) -> dict[str, float]:
    """Seconds of one round's evidence, and of forward passes over its texts."""
    model = make_model(512, 8_000, 8)
    generator = torch.Generator().manual_seed(2)

    def draw(count: int, length: int) -> list[list[int]]:
        return torch.randint(3, 8_000, (count, length), generator=generator).tolist()

    toxic_texts, harmless = draw(n_tokens // 4 // 40, 40), draw(n_tokens // N_TOKENS, N_TOKENS)
    positions = [[len(text) - 1] for text in toxic_texts]
    texts = [*toxic_texts, *harmless]

    def run_forward() -> dict[int, Tensor]:
        found = {}
        head = model.head_module
        with torch.inference_mode():
            for place, states in iterate_head_states(model, texts, 2_048):
                logits = model.head.compute_logits(states, head.weight, head.bias)
                torch.log_softmax(logits, -1)
                found[place] = states[-1]
        return found

    last = run_forward()
    started = time.perf_counter()
    run_forward()
    forward = time.perf_counter() - started
    states = torch.stack([last[place] for place in range(len(toxic_texts))]).clone()
    toxic = ToxicStates(states, torch.arange(100, 150), torch.ones(len(states)))
    rows = [[place] for place in range(len(states))]
    evidence = ToxicTexts(toxic_texts, positions, rows, toxic, torch.arange(len(states)))
    budget = BudgetTexts({"neutral": harmless[:2]})
    study = DeepStudy(
        model,
        FisherEvidence(evidence, BudgetTexts({"neutral": harmless}), budget),
        N_TERMS,
        tokens_per_batch=2_048,
    )
    started = time.perf_counter()
    sizes = {
        name: (module.in_features, module.out_features) for name, module in study.layers.items()
    }
    sizes[HEAD] = (model.head.hidden, model.head.vocab)
    study.sum_moments(sizes)
    moments = time.perf_counter() - started
    terms = study.find_terms()
    started = time.perf_counter()
    study.find_fisher(terms)
    fisher = time.perf_counter() - started
    return {
        "forward_seconds": forward,
        "moments_seconds": moments,
        "fisher_seconds": fisher,
        "ratio": (moments + fisher) / forward,
    }


def main() -> None:
    """Measure both and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4_096)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--n-toxic", type=int, default=2_000)
    parser.add_argument("--n-harmless", type=int, default=20_000)
    parser.add_argument("--deep-tokens", type=int, default=20_000)
    sizes = parser.parse_args()
    deep = time_deep(sizes.deep_tokens)
    model = make_model(sizes.hidden, sizes.vocab, 1)
    drawn = draw_states(model, sizes.n_toxic, sizes.n_harmless)
    ours = choose_fisher(model, drawn)
    patience = PATIENCE * ours["seconds"]
    asked = (sizes.hidden, sizes.vocab, sizes.n_toxic, sizes.n_harmless)
    singular = time_singular(asked, patience)
    ratio = ours["seconds"] / (patience if singular is None else singular)
    figures = {
        "sizes": vars(sizes),
        "fisher": ours,
        "singular_seconds": singular,
        "stopped_after_seconds": patience if singular is None else None,
        "deep": deep,
    }
    what = "choosing Fisher components over choosing singular ones, seconds"
    evidence = "evidence of the deep variant over forward passes on the same texts, seconds"
    bars = [at_most(what, ratio, 0.5), at_most(evidence, deep["ratio"], 3.5)]
    publish("fisher", figures, bars, is_small=sizes.hidden < 4_096)


if __name__ == "__main__":
    main()
