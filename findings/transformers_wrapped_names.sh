#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): weights saved from a wrapped model (torch.compile, DataParallel) have a
# prefix before every name. `from_pretrained` finds none of them, does not fail, and gives a model of random
# values; the log has a table of missing and unexpected keys.
# Seen:
#   _orig_mod.: no error, 0 of 16 parameters as saved
#   module.: no error, 0 of 16 parameters as saved
# Our guard: the prefix is named and the model refused (eigenshift/model/wrapped_names.py, loading.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 safetensors
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2> /dev/null <<'PY'
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=16, bos_token_id=0, eos_token_id=0)
torch.manual_seed(0)
model = GPT2LMHeadModel(config)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter)
model.save_pretrained("model")
own = {name: value.detach().clone() for name, value in model.named_parameters()}
for prefix, wrapper in (("_orig_mod.", torch.compile), ("module.", torch.nn.DataParallel)):
    state = {name: value.clone() for name, value in wrapper(model).state_dict().items()}
    assert all(name.startswith(prefix) for name in state)
    save_file(state, "model/model.safetensors", metadata={"format": "pt"})
    found = dict(AutoModelForCausalLM.from_pretrained("model").named_parameters())
    kept = [name for name in own if torch.equal(found[name], own[name])]
    print(f"{prefix}: no error, {len(kept)} of {len(own)} parameters as saved")
    assert not kept
PY
