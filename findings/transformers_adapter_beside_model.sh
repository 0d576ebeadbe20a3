#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0), with PEFT 0.21.2 and without: a folder that holds a whole model AND an
# adapter (adapter_config.json, adapter_model.safetensors: what a trainer leaves) is two models. With PEFT
# installed `from_pretrained` puts the adapter onto the model without a word; without PEFT it does not.
# Seen:
#   without PEFT: the model in the folder
#   with PEFT: the model with the adapter
# Our guard: such a folder is refused where a model is identified (eigenshift/model/loaded_files.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
install() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
install torch==2.13.0 transformers==5.23.0 safetensors
cd "$folder"
cat > make.py <<'PY'
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=16, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).save_pretrained("model")
name = "base_model.model.transformer.h.0.mlp.c_fc"
save_file(
    {f"{name}.lora_A.weight": torch.ones(1, 8), f"{name}.lora_B.weight": torch.ones(32, 1)},
    "model/adapter_model.safetensors",
)
adapter = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["c_fc"], "fan_in_fan_out": True}
Path("model/adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": "elsewhere"}))
PY
cat > look.py <<'PY'
import sys

import torch
from transformers import AutoModelForCausalLM, logging

logging.set_verbosity_error()
is_adapted, where = sys.argv[1] == "adapted", sys.argv[2]
model = AutoModelForCausalLM.from_pretrained("model")
found = any("lora_A" in name for name, _ in model.named_parameters())
print(f"{where}: {'the model with the adapter' if found else 'the model in the folder'}")
assert found == is_adapted
PY
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" make.py 2> /dev/null
"$folder/venv/bin/python" look.py plain "without PEFT" 2> /dev/null
install peft==0.21.2
"$folder/venv/bin/python" look.py adapted "with PEFT" 2> /dev/null
