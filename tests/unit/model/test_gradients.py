"""Traffic of a backward pass against autograd's own gradients, one unpadded text at a time."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.pytorch_utils import Conv1D

from eigenshift.model.forward import iterate_head_states
from eigenshift.model.gradients import HEAD, Traffic, run_backward
from eigenshift.model.loading import LanguageModel, wrap_model
from eigenshift.model.writers import list_writers
from eigenshift.patches.edits import ModelEdit
from eigenshift.patches.folding import run_hooked
from eigenshift.patches.patching import make_patch, patched_model
from tests.support.architectures import (
    MORE,
    VOCAB,
    WRAPPERS,
    StubTokenizer,
    change_linears,
    damp_head,
    make_architecture,
    make_random_model,
)

ARCHITECTURES = ("gpt2", "gptj", "opt", "llama", "mixtral", "gemma2", "gemma3", "cohere", "granite")
FURTHER = ("CTRLConfig", "MambaConfig", "OpenAIGPTConfig", "RecurrentGemmaConfig", "LlavaConfig")
"""Embeddings scaled in place, a state, no cache, a recurrence, a tower beside."""
SEQUENCES = [
    [(3 * place + 7 * number + 4) % (VOCAB - 8) + 3 for place in range(length)]
    for number, length in enumerate((5, 9, 2, 9, 12, 6))
]
WEIGHTS = (1.0, -0.5, 2.0, 0.25, 1.5, 0.75)


class RoutedMlp(nn.Module):
    """Two experts in a loop, each token sent to one of them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.experts = nn.ModuleList([LlamaMLP(config) for _ in range(2)])

    def forward(self, states: Tensor) -> Tensor:
        """By the sign of the first unit."""
        flat = states.flatten(0, -2)
        found = torch.zeros_like(flat)
        for expert, chosen in zip(self.experts, (flat[:, 0] > 0, flat[:, 0] <= 0), strict=True):
            if chosen.any():
                found[chosen] = expert(flat[chosen])
        return found.view_as(states)


def wrap(name: str) -> LanguageModel:
    """A model whose parameters ask for no gradients, as models are loaded."""
    if name == "routed":
        model = make_architecture("llama")
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for layer in model.model.layers:
                layer.mlp = RoutedMlp(model.config)
        model.eval()
    elif name in FURTHER:
        model = make_random_model(name, {**MORE, **WRAPPERS}[name])
    else:
        model = make_architecture(name)
    model.requires_grad_(False)
    return wrap_model(model, StubTokenizer(), model_id=name, digest="d")


def objective(places: list[int], logits: Tensor) -> Tensor:
    """Weighted log-likelihood of the texts' own tokens."""
    total = logits.new_zeros(())
    for row, place in enumerate(places):
        tokens = SEQUENCES[place]
        found = torch.log_softmax(logits[row, : len(tokens) - 1], -1)
        chosen = found.gather(1, torch.tensor(tokens[1:])[:, None])
        total = total + WEIGHTS[place] * chosen.sum()
    return total


class Sums:
    """What a caller keeps: g x^T of every layer, and the traffic of the head by sequence."""

    def __init__(self) -> None:
        self.n_begun = 0
        self.weights: dict[str, Tensor] = {}
        self.head: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.n_tokens: dict[str, int] = {}

    def begin(self) -> Callable[[Traffic], None]:
        """Anew."""
        self.n_begun += 1
        self.weights, self.head = {}, defaultdict(list)
        self.n_tokens = defaultdict(int)
        return self.add

    def add(self, traffic: Traffic) -> None:
        """One layer, one batch."""
        assert traffic.inputs.dtype == traffic.gradients.dtype == torch.float32
        assert len(traffic.inputs) == len(traffic.gradients) == len(traffic.sequence)
        product = traffic.gradients.T @ traffic.inputs
        self.weights[traffic.name] = self.weights.get(traffic.name, 0.0) + product
        self.n_tokens[traffic.name] += len(traffic.inputs)
        if traffic.name == HEAD:
            for place in traffic.sequence.unique().tolist():
                chosen = traffic.sequence == place
                self.head[place].append((traffic.inputs[chosen], traffic.gradients[chosen]))


def sum_traffic(
    language_model: LanguageModel, tokens_per_batch: int = 40, layers: Any = None
) -> Sums:
    """What a pass over all sequences hands over."""
    sums = Sums()
    run_backward(
        language_model,
        SEQUENCES,
        objective,
        list_writers(language_model.model) if layers is None else layers,
        sums.begin,
        tokens_per_batch=tokens_per_batch,
    )
    return sums


def differentiate(language_model: LanguageModel) -> tuple[dict[str, Tensor], dict[int, Any]]:
    """Autograd's own: by the writers' weights, (out, in), and by the head's own output."""
    model, writers = language_model.model, list_writers(language_model.model)
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        output.retain_grad()
        kept.append((args[0].detach(), output))

    handle = language_model.head_module.register_forward_hook(keep)
    for module in writers.values():
        module.weight.requires_grad_(True)
        module.weight.grad = None
    heads = {}
    for place, tokens in enumerate(SEQUENCES):
        kept.clear()
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        objective([place], logits).backward()
        ((entering, output),) = kept
        assert output.grad is not None
        heads[place] = (entering[0], output.grad[0])
    handle.remove()
    found = {}
    for name, module in writers.items():
        gradient = module.weight.grad
        found[name] = gradient.T if isinstance(module, Conv1D) else gradient
        module.weight.requires_grad_(False)
        module.weight.grad = None
    return found, heads


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Relative to the largest entry."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("name", [*ARCHITECTURES, *FURTHER, "routed"])
def test_products_add_up_to_the_gradients_of_the_weights(name: str) -> None:
    """For every writer, and for the head's own output; padding and batches leave no trace."""
    language_model = wrap(name)
    expected, heads = differentiate(language_model)
    assert expected
    n_tokens = sum(map(len, SEQUENCES))
    for tokens_per_batch in (1, 30, 1000):
        sums = sum_traffic(language_model, tokens_per_batch)
        assert set(sums.weights) == {*expected, HEAD}
        for writer, gradient in expected.items():
            assert_near(sums.weights[writer], gradient)
            is_expert = ".experts." in writer
            assert is_expert or sums.n_tokens[writer] == n_tokens
        for place, (states, gradient) in heads.items():
            ((inputs, found),) = sums.head[place]
            assert_near(inputs, states)
            assert_near(found, gradient)


def test_experts_see_the_tokens_that_are_sent_to_them() -> None:
    """Together all of them that matter to the objective, none twice."""
    sums = sum_traffic(wrap("routed"))
    experts = [name for name in sums.n_tokens if ".experts." in name]
    assert len(experts) == 4
    # A text's last token predicts nothing, so in the last block it may be left out.
    n_tokens = sum(map(len, SEQUENCES))
    n_seen = sum(sums.n_tokens[name] for name in experts if ".1.mlp" in name)
    assert n_tokens - len(SEQUENCES) <= n_seen <= n_tokens
    assert all(sums.n_tokens[name] > 0 for name in experts)


def test_the_head_alone_needs_no_graph_of_the_trunk() -> None:
    """Without layers the head's output is the leaf: the same traffic of the head."""
    language_model = wrap("gemma2")
    whole, alone = sum_traffic(language_model), sum_traffic(language_model, layers={})
    assert set(alone.weights) == {HEAD}
    assert_near(alone.weights[HEAD], whole.weights[HEAD], 1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "llama"])
def test_it_runs_after_passes_in_inference_mode(name: str) -> None:
    """What such a pass leaves behind in a model (positions, masks) does not stop the next one."""
    language_model = wrap(name)
    before = sum_traffic(language_model)
    list(iterate_head_states(language_model, SEQUENCES, 64))
    with torch.inference_mode():
        language_model.model(input_ids=torch.tensor([[5, 6, 7] * 10]))
    after = sum_traffic(language_model)
    for layer, gradient in before.weights.items():
        assert_near(after.weights[layer], gradient, 1e-6)
    assert all(not item.requires_grad for item in language_model.model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere"])
def test_under_hooks_it_differentiates_the_edited_model(name: str) -> None:
    """The gradients of the folded model; the head is handed over with what it reads as edited."""
    language_model = wrap(name)
    writers = list(list_writers(language_model.model))
    head = damp_head(language_model, 0.3).head
    assert head is not None
    edit = ModelEdit(head, {}, change_linears(language_model, writers[:3]).linears)
    with run_hooked(language_model, edit):
        sums = sum_traffic(language_model)
    patch = make_patch(language_model, edit, model_id="tiny", intervention="test")
    with patched_model(language_model, patch):
        expected, heads = differentiate(language_model)
    unedited, _ = differentiate(language_model)
    for writer, gradient in expected.items():
        assert_near(sums.weights[writer], gradient, 1e-4)
        assert not torch.allclose(gradient, unedited[writer], rtol=1e-2)
    for place, (states, gradient) in heads.items():
        ((inputs, found),) = sums.head[place]
        assert_near(inputs, head.apply_to_states(states), 1e-4)
        assert_near(found, gradient, 1e-4)


def test_a_model_in_half_precision_hands_over_whole_numbers() -> None:
    """Traffic is float32 whatever the model runs in, near that of the wide model."""
    wide = wrap("llama")
    expected, _ = differentiate(wide)
    model = make_architecture("llama").to(torch.bfloat16).requires_grad_(False)
    sums = sum_traffic(wrap_model(model, StubTokenizer(), model_id="low", digest="e"))
    for writer, gradient in expected.items():
        assert_near(sums.weights[writer], gradient, 0.2)


def test_where_memory_runs_out_all_is_begun_anew_in_smaller_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half way: what was handed over before does not count twice."""
    language_model = wrap("gpt2")
    expected = sum_traffic(language_model)
    sizes: list[int] = []
    given = objective

    def scarce(places: list[int], logits: Tensor) -> Tensor:
        sizes.append(len(places))
        if len(places) > 1 and len(sizes) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is.")
        return given(places, logits)

    monkeypatch.setattr(f"{__name__}.objective", scarce)
    sums = sum_traffic(language_model, tokens_per_batch=20)
    assert sums.n_begun > 1
    assert sizes[0] > 1  # the first batch was done, the second was too much
    assert sums.weights.keys() == expected.weights.keys()
    for layer, gradient in expected.weights.items():
        assert_near(sums.weights[layer], gradient, 1e-5)


def test_a_budget_far_above_what_there_is_is_lowered_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of what was tried, not of what was allowed: the same batch is not tried again."""
    language_model = wrap("gpt2")
    sizes: list[int] = []
    given = objective

    def scarce(places: list[int], logits: Tensor) -> Tensor:
        sizes.append(len(places))
        if len(places) > 4:
            raise torch.OutOfMemoryError("made up")
        return given(places, logits)

    monkeypatch.setattr(f"{__name__}.objective", scarce)
    sums = sum_traffic(language_model, tokens_per_batch=1 << 20)
    assert sums.n_begun == 2
    assert sizes[0] == len(SEQUENCES)


@pytest.mark.parametrize(
    ("message", "tokens_per_batch"), [("out of memory", 1), ("shapes do not fit", 1000)]
)
def test_what_smaller_batches_cannot_help_is_raised(
    message: str, tokens_per_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single sequence that does not fit, and any other error; no hook is left behind."""
    language_model = wrap("gpt2")

    def fail(_places: list[int], _logits: Tensor) -> Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(f"{__name__}.objective", fail)
    with pytest.raises(RuntimeError, match=message):
        sum_traffic(language_model, tokens_per_batch)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for module in language_model.model.modules()
    )


@pytest.mark.parametrize("with_layers", [True, False])
def test_nothing_of_a_pass_is_kept(with_layers: bool) -> None:
    """A hook that held its own tensor would keep every batch's states: counted by their tensors."""
    language_model = wrap("gpt2")
    layers = list_writers(language_model.model) if with_layers else {}

    def count() -> int:
        gc.collect()
        width = language_model.head.hidden
        # by type: asking a dead weak reference of another test for its class is an error
        found = (item for item in gc.get_objects() if issubclass(type(item), Tensor))
        return sum(item.ndim == 3 and item.shape[-1] == width for item in found)

    def run() -> None:
        run_backward(
            language_model,
            SEQUENCES,
            objective,
            layers,
            lambda: ignore_traffic,
            tokens_per_batch=12,
        )

    run()
    before = count()
    for _ in range(3):
        run()
    assert count() == before


def ignore_traffic(_: Traffic) -> None:
    """Look at no traffic."""
