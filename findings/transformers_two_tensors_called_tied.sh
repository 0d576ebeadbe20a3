#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): a checkpoint that holds two different tensors for embedding and head,
# with a configuration that says `tie_word_embeddings: true`, is loaded as two (with a warning). Resizing the
# embeddings makes one of them, and the head is gone. In bfloat16 two tensors that differ by less are one.
# Seen:
#   loaded: two tensors
#   after resize_token_embeddings: one tensor
#   loaded in bfloat16, where they are equal: one tensor
# Our guard: load, export and LoRA go by the files, and exports say `tie_word_embeddings: false`
# (eigenshift/exporting/base_files.py, merged.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2> /dev/null <<'PY'
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def save(folder, head):
    """A model with this head and a configuration that calls it tied."""
    model.lm_head.weight.data = head
    model.save_pretrained(folder)
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))


def count(model, when):
    is_one = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    print(f"{when}: {'one tensor' if is_one else 'two tensors'}")
    return 1 if is_one else 2


sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **sizes))
embedding = model.model.embed_tokens.weight.data
save("other", embedding.flip(0).contiguous())
save("rounded", embedding.bfloat16().float())
other = AutoModelForCausalLM.from_pretrained("other")
assert count(other, "loaded") == 2
other.resize_token_embeddings(40)
assert count(other, "after resize_token_embeddings") == 1
half = AutoModelForCausalLM.from_pretrained("rounded", dtype=torch.bfloat16)
assert count(half, "loaded in bfloat16, where they are equal") == 1
PY
