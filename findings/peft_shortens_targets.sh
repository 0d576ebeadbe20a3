#!/usr/bin/env bash
# PEFT 0.21.2 (torch 2.13.0, transformers 5.23.0): from 20 target modules on, `get_peft_model` replaces the
# list of full names in the configuration by the fewest endings that match the same modules of *this*
# model, and that is what `save_pretrained` writes. Of 18 names nothing is changed. An adapter of full
# names, saved and put on a model of the same family that has more modules, can then sit on modules that
# nobody named: the endings match there too.
# Seen:
#   18 names given, 18 of them in the saved configuration
#   24 names given, 0 of them in the saved configuration, which has 1 endings
# Our guard: an export writes its adapter_config.json itself, with full names, and is never a saved copy of
# what PEFT made of it (eigenshift/exporting/lora.py; its tests load adapters of 22 modules).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import json
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel


def count(n_layers):
    sizes = {"n_layer": 12, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 16}
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)
    names = [
        f"transformer.h.{layer}.{part}.c_proj" for layer in range(n_layers) for part in ("attn", "mlp")
    ]
    model = get_peft_model(GPT2LMHeadModel(config), LoraConfig(target_modules=names, fan_in_fan_out=True))
    model.save_pretrained(f"adapter-{n_layers}")
    saved = json.loads(Path(f"adapter-{n_layers}/adapter_config.json").read_text())["target_modules"]
    return len(names), len(set(names) & set(saved)), len(saved)


few, many = count(9), count(12)
print(f"{few[0]} names given, {few[1]} of them in the saved configuration")
print(f"{many[0]} names given, {many[1]} of them in the saved configuration, which has {many[2]} endings")
assert few[0] == few[1] == few[2] == 18, few
assert many[0] == 24 and many[1] == 0 and many[2] < 24, many
PY
