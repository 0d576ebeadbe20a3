"""Forward and backward passes: what every linear map saw, and how an objective depends on it.

For a linear layer y = W x the derivative of an objective by W is the sum over tokens of g x^T, g
the derivative by y; so all that a study of low-rank changes of W needs are products of x and g.
They are handed over layer by layer while the backward pass runs, and nothing is kept: no weight has
a gradient, and no tensor of all tokens x layers x width exists. What is summed up is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eigenshift.model.batching import is_out_of_memory, plan_batches
from eigenshift.model.divided import releasing_weights
from eigenshift.model.loading import LanguageModel
from eigenshift.model.tokens import pad_tokens

HEAD = "head"
"""Name under which the output head is handed over: g is by its own output, before scale and cap."""

Objective = Callable[[list[int], Tensor], Tensor]
"""(Places of a batch's sequences, logits (sequence, position, vocab)) -> what is differentiated."""


@dataclass(frozen=True)
class Traffic:
    """What passed through one layer in one batch, real tokens only, on the layer's device.

    Attributes:
        name: Of the layer, or `HEAD`.
        inputs: x, shape (token, in), float32.
        gradients: g, shape (token, out), float32.
        sequence: Place of the sequence each token is of, shape (token,).
    """

    name: str
    inputs: Tensor
    gradients: Tensor
    sequence: Tensor


def run_backward(
    language_model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    objective: Objective,
    layers: Mapping[str, nn.Module],
    start: Callable[[], Callable[[Traffic], None]],
    *,
    tokens_per_batch: int,
) -> None:
    """Differentiate an objective of the logits, batch by batch.

    Args:
        language_model: The model, as its weights or hooks make it run now; not modified.
        sequences: Token ids, at least one each.
        objective: A sum over the batch; must not depend on how sequences are batched.
        layers: Linear layers to hand over, by name, beside the head.
        start: Called at the beginning, and again if memory ran out and all is begun anew in
            smaller batches; returns what each layer's traffic is given to.
        tokens_per_batch: Budget of tokens, padding included, of a pass.

    Raises:
        RuntimeError: A single sequence does not fit into memory.
    """
    lengths = [len(sequence) for sequence in sequences]
    is_routed = any(".experts." in f".{name}." for name in layers)
    while True:
        batches = plan_batches(lengths, 1 if is_routed else tokens_per_batch)
        visit = start()
        try:
            for batch in batches:
                rows = [sequences[place] for place in batch]
                _run_batch(language_model, batch, rows, objective, layers, visit)
        except RuntimeError as error:
            if not is_out_of_memory(error) or max(map(len, batches)) == 1:
                raise
            largest = max(len(batch) * max(lengths[place] for place in batch) for batch in batches)
            tokens_per_batch = min(tokens_per_batch, largest) // 2
            continue
        return


def _run_batch(
    language_model: LanguageModel,
    places: list[int],
    rows: Sequence[Sequence[int]],
    objective: Objective,
    layers: Mapping[str, nn.Module],
    visit: Callable[[Traffic], None],
) -> None:
    device = language_model.device
    token_ids, mask = pad_tokens(rows, language_model.tokenizer.pad_token_id, "right")
    token_ids, mask = token_ids.to(device), mask.to(device)
    is_real = mask.bool()
    owners = torch.tensor(places, device=device)[:, None].expand_as(mask)[is_real]

    def hand_over(name: str, inputs: Tensor, gradients: Tensor) -> None:
        g = gradients.flatten(0, -2)
        x = inputs.to(g.device).flatten(0, -2)  # of a divided model from the layer before
        if len(x) == is_real.numel():
            chosen, owner = is_real.flatten().to(g.device), owners.to(g.device)
        else:  # of experts only the tokens sent there are seen; then a batch is one sequence
            chosen = g.any(1)
            owner = owners[:1].to(g.device).expand(int(chosen.sum()))
        visit(Traffic(name, x[chosen].float(), g[chosen].float(), owner))

    def watch(name: str) -> Any:
        def record(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            inputs = args[0].detach()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: hand_over(name, inputs, gradient)
            )

        return record

    def begin_at_head(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if layers else output.detach().requires_grad_()

    def begin_graph(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_().clone()  # CTRL scales it in place, so no leaf

    model = language_model.model
    with (
        language_model.lock,
        ExitStack() as stack,
        torch.enable_grad(),
        releasing_weights(model),
    ):
        if layers:
            handle = model.get_input_embeddings().register_forward_hook(begin_graph)
            stack.callback(handle.remove)
        for name, module in layers.items():
            stack.callback(module.register_forward_hook(watch(name)).remove)
        for hook in (begin_at_head, watch(HEAD)):
            handle = language_model.head_module.register_forward_hook(hook)
            stack.callback(handle.remove)
        logits = model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits
        objective(places, logits).backward()  # type: ignore[no-untyped-call]
