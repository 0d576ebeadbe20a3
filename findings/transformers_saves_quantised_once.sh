#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0, bitsandbytes 0.50.2): a model that was quantised while it was loaded can be
# saved; loaded from what was saved, it cannot be saved again: `save_pretrained` ends in a NotImplementedError
# without a message, since the conversion of the codes has no reverse. `save_original_format=False` saves it,
# and it loads as it was.
# Seen:
#   quantised on loading: saved
#   loaded from that: NotImplementedError ''
#   with save_original_format=False: saved, and loads with equal logits
# Our guard: quantised weights are saved without the conversion (`save_weights`, eigenshift/model/loading.py); exports
# copy the base's files and write the changed tensors only (eigenshift/exporting/merged.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 bitsandbytes==0.50.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=100, tie_word_embeddings=False, **sizes)).save_pretrained("full")
load = AutoModelForCausalLM.from_pretrained
first = load("full", quantization_config=BitsAndBytesConfig(load_in_8bit=True), dtype=torch.float32)
first.save_pretrained("quantised")
print("quantised on loading: saved")
second = load("quantised", dtype=torch.float32)
seen = "saved"
try:
    second.save_pretrained("again")
except NotImplementedError as error:
    seen = f"NotImplementedError {str(error)!r}"
print(f"loaded from that: {seen}")
second.save_pretrained("plain", save_original_format=False)
third = load("plain", dtype=torch.float32)
tokens = torch.arange(6)[None]
with torch.inference_mode():
    is_equal = torch.equal(second(tokens).logits, third(tokens).logits)
print(f"with save_original_format=False: saved, and loads with {'equal' if is_equal else 'other'} logits")
assert seen == "NotImplementedError ''", seen
assert is_equal
PY
