#!/usr/bin/env bash
# accelerate 1.15.0 (transformers 5.23.0, torch 2.13.0), `from_pretrained(device_map={...})`:
#   - a name in the map that is no module of the model is passed over with a warning: what it was meant for stays
#     where the rest is;
#   - a place within a place ("" and a layer) fails while loading, with a message that says nothing of the map;
#   - a tensor that has two names, one in memory and one on disk (T5's embedding), is found missing at the first pass;
#   - a divided model is not freed when nothing names it any more: its modules hold themselves, so it waits for the
#     garbage collector, and a second one is loaded beside it.
# Seen:
#   unknown name: loads, on disk: [], warned: True
#   place within a place: ValueError: weight is on the meta device, we need a `value` to put in on cpu.
#   two names, two places: loads, then KeyError: 'encoder.embed_tokens.weight'
#   freed when dropped: whole True, divided False; after a collection: True
# Our guard: maps are checked and written out before anything is loaded (eigenshift/model/device_maps.py), and dropping
# a divided model collects (eigenshift/model/loading.py); tests/unit/model/test_device_maps.py, test_weight_loading.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import gc
import logging
import warnings
import weakref

import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5Model

logging.disable(logging.WARNING)
sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)).save_pretrained("llama")
T5Model(
    T5Config(vocab_size=32, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
).save_pretrained("t5")
tokens = torch.tensor([[1, 2, 3]])


def load(device_map=None):
    return LlamaForCausalLM.from_pretrained("llama", device_map=device_map)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = load({"": "cpu", "model.layer.1": "disk"})
on_disk = [name for name, parameter in model.named_parameters() if parameter.is_meta]
warned = any("do not match any submodules" in str(item.message) for item in caught)
print(f"unknown name: loads, on disk: {on_disk}, warned: {warned}")
assert (on_disk, warned) == ([], True)

try:
    load({"": "cpu", "model.layers.1": "disk"})
    nested = "loads"
except ValueError as error:
    nested = f"ValueError: {error}"
print(f"place within a place: {nested}")
assert "meta device" in nested, nested

model = T5Model.from_pretrained(
    "t5", device_map={"shared": "cpu", "encoder": "disk", "decoder": "cpu"}
)
try:
    model.encoder(input_ids=tokens)
    shared = "runs"
except KeyError as error:
    shared = f"KeyError: {error}"
print(f"two names, two places: loads, then {shared}")
assert "embed_tokens" in shared, shared

trunk_on_disk = {
    **{"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "disk"},
    **{"model.rotary_emb": "cpu", "lm_head": "cpu"},
}
gc.collect()
gc.disable()
whole, divided = load(), load(trunk_on_disk)
held = weakref.ref(whole), weakref.ref(divided)
del whole, divided
freed = [reference() is None for reference in held]
gc.collect()
after = held[1]() is None
print(f"freed when dropped: whole {freed[0]}, divided {freed[1]}; after a collection: {after}")
assert (freed, after) == ([True, False], True)
PY
