#!/usr/bin/env bash
# bitsandbytes 0.50.2 (torch 2.13.0), on a processor with AVX512-BF16: the first forward pass of a 4-bit layer
# in eval mode rewrites its codes for the CPU, in place. From then on
#   - gradients pass the layer by: what flows to its inputs is zero, with a warning about an autograd kernel
#     that is not registered, and no error;
#   - its state is that of another layer, unless scales are quantised twice: codes are turned back, scales are
#     left transposed and rounded to bfloat16. A model that has run and is then saved is another model.
# On a processor without AVX512-BF16 there is nothing to see, and the script says so.
# Seen:
#   before it ran: gradient of the input 1.00 of that by its decoded values
#   after it ran: gradient of the input 0.00 of that by its decoded values
#   saved after it ran: the decoded values differ by 0.2 of their norm
# Our guard: layers are kept from rewriting (`keep_codes`, eigenshift/model/layers.py; its tests compare gradients
# with those of the decoded values, after a pass, and reload a patched model that has run).
set -euo pipefail
if ! grep -q avx512_bf16 /proc/cpuinfo; then
    echo "this processor has no AVX512-BF16: nothing is rewritten, nothing to show"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 bitsandbytes==0.50.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit

torch.manual_seed(0)


def make(weight):
    layer = Linear4bit(256, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32, compress_statistics=False)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
    return layer.to("cpu").eval()


def decode(layer):
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def compare(layer, values):
    """The gradient of the input, beside that by the decoded values."""
    inputs = torch.randn(5, 256, requires_grad=True)
    towards = torch.randn(5, 64)
    outputs = layer(inputs)
    if outputs.requires_grad:
        (outputs * towards).sum().backward()
    expected = towards @ values
    found = torch.zeros_like(inputs) if inputs.grad is None else inputs.grad
    return float((found * expected).sum() / expected.square().sum())


layer = make(torch.randn(64, 256))
values = decode(layer).clone()
before = compare(layer, values)
with torch.inference_mode():
    layer(torch.randn(5, 256))
after = compare(layer, values)
state = {name: value.clone() for name, value in layer.state_dict().items()}
again = Params4bit.from_prequantized(
    state["weight"], {name: value for name, value in state.items() if name != "weight"}, device="cpu"
)
saved = dequantize_4bit(again.data, again.quant_state).float()
apart = float((saved - values).norm() / values.norm())
print(f"before it ran: gradient of the input {before:.2f} of that by its decoded values")
print(f"after it ran: gradient of the input {after:.2f} of that by its decoded values")
print(f"saved after it ran: the decoded values differ by {apart:.1f} of their norm")
assert before > 0.9, before
assert abs(after) < 0.1, after
assert apart > 0.1, apart
PY
