"""Find a causal language model's output head, describe it, and prove the description.

What is between the final hidden state and the logits differs from model to model: a bias, a
multiplier, a soft cap, a projection before the head. The names in a configuration say what to
expect; a probe (one forward pass over a handful of made-up tokens) then decides, so a model this
module has never seen is either reproduced exactly or refused with a reason. Reads a model in
memory; loads, writes and changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eigenshift.base.errors import ModelError

HEAD_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier", "logits_scaling")
DIVISORS = ("logits_scaling",)  # Granite divides by it, HyperCLOVA X multiplies: the probe decides
SOFT_CAPS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_softcap",
)
ROWS_PER_BLOCK = 16_384
"""Rows of a half-precision head widened at once: 0.5 GB in float32 at a hidden size of 8,192."""
N_PROBE_TOKENS = 5
PROBE_MAGNITUDES = (0.1, 100.0)  # spread of the probe's raw logits, so that a soft cap shows


@dataclass(frozen=True)
class HeadDescription:
    """The output head of a causal language model, as proved by a probe.

    Attributes:
        name: Name of the head's module, e.g. "lm_head".
        vocab: Rows of its weight: tokens.
        hidden: Columns of its weight: width of the state that enters it.
        is_tied: Its weight shares memory with the input embedding.
        has_bias: It adds a bias, shape (vocab,).
        logit_scale: The model multiplies the head's output by this (dimensionless).
        logit_softcap: Then `cap * tanh(logits / cap)`; None where the model has no cap.
        preceding_module: Name of the module whose output enters the head: the final norm, or a
            projection after it; None if it is not the plain output of a module.
        dtype: Of the weight.
    """

    name: str
    vocab: int
    hidden: int
    is_tied: bool
    has_bias: bool
    logit_scale: float
    logit_softcap: float | None
    preceding_module: str | None
    dtype: torch.dtype

    def compute_logits(self, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the logits the model would give with this head weight.

        Args:
            states: What enters the head, shape (..., hidden).
            weight: Shape (vocab, hidden), same dtype and device as `states`.
            bias: Shape (vocab,), or None. Give the head's own bias where `has_bias`.

        Returns:
            Shape (..., vocab), dtype of `states`.
        """
        return self.finish_logits(functional.linear(states, weight, bias))

    def compute_precise_logits(
        self, states: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """As `compute_logits`, with the product in float32 whatever precision the trunk has.

        A product in bfloat16 is rounded to 8 bits: logits of 16 and more are off by up to 0.06,
        which likelihoods and divergences between similar heads do not stand. The weight is
        widened in blocks of the vocabulary.

        Returns:
            Shape (..., vocab), float32 or wider.
        """
        return self.finish_logits(self.compute_raw_logits(states, weight, bias))

    def compute_raw_logits(
        self, states: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The same before scale and soft cap."""
        if states.dtype not in (torch.bfloat16, torch.float16):
            return functional.linear(states, weight, bias)
        wide = states.float()
        blocks = [
            wide @ weight[first : first + ROWS_PER_BLOCK].float().T
            for first in range(0, len(weight), ROWS_PER_BLOCK)
        ]
        raw = torch.cat(blocks, dim=-1)
        return raw if bias is None else raw + bias.float()

    def finish_logits(self, raw: Tensor) -> Tensor:
        """Apply scale and soft cap to the head's own output, shape (..., vocab)."""
        logits = raw if self.logit_scale == 1.0 else raw * self.logit_scale
        if self.logit_softcap is None:
            return logits
        return torch.tanh(logits / self.logit_softcap) * self.logit_softcap


@dataclass(frozen=True)
class _Probe:
    """What one forward pass over made-up tokens showed."""

    real_states: Tensor  # what the trunk sent to the head, (2, position, hidden)
    states: Tensor  # what we put in its place, same shape
    logits: Tensor  # what the model made of it, (2, position, vocab)
    preceding_module: str | None


def find_head(model: Any) -> tuple[str, nn.Linear]:
    """Return name and module of a model's output head.

    Raises:
        ModelError: There is none, or it is not a plain floating-point `nn.Linear`.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{_place(model)}: expected an output head, found none. The class is a trunk or not a "
            "causal language model. Choose a model that AutoModelForCausalLM loads with a head."
        )
    is_plain = (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward
        and type(head.weight) is nn.Parameter  # torchao's codes say that they are float32
    )
    if not is_plain or head.weight.dtype not in HEAD_DTYPES:
        weight = getattr(head, "weight", None)
        raise ModelError(
            f"{_place(model)}: expected the output head to be a plain nn.Linear in floating point, "
            f"found {type(head).__name__} with {type(weight).__name__} in "
            f"{getattr(weight, 'dtype', 'no dtype')}. The head is "
            "probably quantised or replaced by an adapter. Use weights whose head is not quantised."
        )
    for name, module in model.named_modules():
        if module is head:
            return name, head
    raise ModelError(
        f"{_place(model)}: expected the output head among the model's modules, found it outside. "
        "The model builds its head on the fly, so it cannot be patched. Choose another model."
    )


@torch.inference_mode()
def describe_head(model: Any) -> HeadDescription:
    """Describe a causal language model's head, and prove the description by a probe.

    Args:
        model: A `PreTrainedModel` in eval mode, on its device. Runs once over made-up tokens.

    Raises:
        ModelError: The head is missing or of an unsupported kind, the model is not causal, or
            what it does after the head could not be reproduced.
    """
    name, head = find_head(model)
    probe = _run_probe(model, head)
    _check_shapes(model, head, probe)
    _check_causal(model, probe)
    for scale, softcap in _list_candidates(model.config.get_text_config()):
        description = HeadDescription(
            name=name,
            vocab=head.out_features,
            hidden=head.in_features,
            is_tied=_shares_storage(model, head),
            has_bias=head.bias is not None,
            logit_scale=scale,
            logit_softcap=softcap,
            preceding_module=probe.preceding_module,
            dtype=head.weight.dtype,
        )
        logits = description.compute_logits(probe.states, head.weight, head.bias)
        if _are_close(logits, probe.logits, head.weight.dtype):
            return description
    raise ModelError(
        f"{_place(model)}: expected logits = head(state), scaled and soft-capped as the "
        f"configuration says, found other values. The model changes its logits in a way unknown "
        f"to this version (known settings: {', '.join((*MULTIPLIERS, *SOFT_CAPS))}). Choose "
        "another model, or report its architecture."
    )


def digest_tensor(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes of a tensor, e.g. of a head's weight."""
    return digest_blocks(tensor.dtype, tensor.shape, [tensor])


def digest_blocks(dtype: torch.dtype, shape: Sequence[int], blocks: Iterable[Tensor]) -> str:
    """`digest_tensor` of one that comes in blocks of rows."""
    digest = hashlib.sha256(f"{dtype}:{tuple(shape)}:".encode())
    for block in blocks:
        digest.update(view_bytes(block))
    return digest.hexdigest()


def view_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values as bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _list_candidates(config: Any) -> Iterator[tuple[float, float | None]]:
    """Possible (scale, soft cap), those the configuration names first."""
    scales = [_read_number(config, key) for key in MULTIPLIERS]
    scales += [1.0 / value for key in DIVISORS if (value := _read_number(config, key))]
    softcaps = [_read_number(config, key) for key in SOFT_CAPS]
    named_scales = [scale for scale in scales if scale]
    named_softcaps = [softcap for softcap in softcaps if softcap]
    return itertools.product([*named_scales, 1.0], [*named_softcaps, None])


def _read_number(config: Any, key: str) -> float | None:
    value: Any = getattr(config, key, None)
    return float(value) if isinstance(value, int | float) else None


def _run_probe(model: Any, head: nn.Linear) -> _Probe:
    """Run made-up tokens, replacing what enters the head by states that give large logits."""
    outputs: list[tuple[str, Tensor]] = []
    seen: list[tuple[Tensor, Tensor, str | None]] = []

    def record_output(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and not seen:
            outputs.append((name, output))

    def replace_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        state = args[0]
        pointer = state.data_ptr()
        names = [name for name, output in outputs if output.data_ptr() == pointer]
        made_up = _make_states(head, state.shape)
        seen.append((state.clone(), made_up, names[0] if names else None))
        return (made_up, *args[1:])

    handles = [
        module.register_forward_hook(lambda _m, _a, output, name=name: record_output(name, output))
        for name, module in model.named_modules()
        if module is not head and name
    ]
    handles.append(head.register_forward_pre_hook(replace_input))
    try:
        tokens = _make_tokens(head.out_features).to(head.weight.device)
        mask = torch.ones_like(tokens)
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 1:
        raise ModelError(
            f"{_place(model)}: expected the output head to run once per forward pass, found "
            f"{len(seen)} runs. The model does not call its head as a module, or predicts several "
            "tokens at once. Choose another model."
        )
    real_states, states, preceding_module = seen[0]
    return _Probe(real_states, states, logits, preceding_module)


def _make_tokens(vocab: int) -> Tensor:
    """Two rows of token ids that differ in the last one only, shape (2, position)."""
    row = (torch.arange(N_PROBE_TOKENS) * 7 + 5) % vocab
    other = row.clone()
    other[-1] = (row[-1] + 1) % vocab
    return torch.stack([row, other])


def _make_states(head: nn.Linear, shape: torch.Size) -> Tensor:
    """Random states whose raw logits have magnitudes from small to large."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(shape, generator=generator)
    low, high = PROBE_MAGNITUDES
    magnitudes = torch.logspace(
        torch.tensor(low).log10().item(), torch.tensor(high).log10().item(), shape[:-1].numel()
    )
    spread = head.weight.float().norm(dim=1).mean().clamp_min(1e-6).item()
    scaled: Tensor = states * (magnitudes / spread).reshape(*shape[:-1], 1)
    return scaled.to(head.weight.device, head.weight.dtype)


def _check_shapes(model: Any, head: nn.Linear, probe: _Probe) -> None:
    expected = (2, N_PROBE_TOKENS, head.out_features)
    if tuple(probe.logits.shape) != expected:
        raise ModelError(
            f"{_place(model)}: expected logits of shape {expected} (batch, position, vocab), found "
            f"{tuple(probe.logits.shape)}. The model pads, cuts or rearranges its vocabulary. "
            "Choose another model."
        )


def _check_causal(model: Any, probe: _Probe) -> None:
    """A causal model's earlier states do not know the last token."""
    first, second = probe.real_states[0, :-1].float(), probe.real_states[1, :-1].float()
    is_wide = probe.real_states.dtype in (torch.float32, torch.float64)
    tolerance = (1e-4 if is_wide else 2e-2) * max(1e-6, first.abs().max().item())
    if not (first - second).abs().max().item() <= tolerance:
        raise ModelError(
            f"{_place(model)}: expected a causal language model, found one whose earlier states "
            "depend on later tokens. It is probably an encoder, or its weights give NaN. Choose a "
            "model made to generate text."
        )


def _are_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether each position's logits agree, relative to its largest."""
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
    difference = (found.float() - expected.float()).abs().amax(dim=-1)
    scale = expected.float().abs().amax(dim=-1).clamp_min(1e-6)
    return bool((difference <= tolerance * scale).all())


def _shares_storage(model: Any, head: nn.Linear) -> bool:
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return False
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor):
        return False
    return weight.untyped_storage().data_ptr() == head.weight.untyped_storage().data_ptr()


def _place(model: Any) -> str:
    name = getattr(model.config, "_name_or_path", "") or "model"
    return f"{name} ({type(model).__name__})"
