#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): `AutoModelForCausalLM` loads a folder of Qwen3.5, a wrapper around a language model and a
# vision tower, as its text-only class. Whether the head is the input embedding stands in the wrapper's part of the configuration,
# which that class does not read: a tied head is not in the file, and gets random values with no more than a line in the log.
# Seen:
#   AutoModelForImageTextToText: Qwen3_5ForConditionalGeneration, head is the embedding: True, the model's logits
#   AutoModelForCausalLM: Qwen3_5ForCausalLM, head is the embedding: False, other logits
# Our guard: a model is loaded by the class its configuration names (eigenshift/model/classes.py), and one with a weight that is
# not in the files is refused (eigenshift/model/loading.py). Test: tests/unit/model/test_loading_wrappers.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2> "$folder/log"
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen3_5Config

torch.manual_seed(0)
rotation = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
text = {
    **{"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rotation},
    **{"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
config = Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
model = AutoModelForImageTextToText.from_config(config).eval()
model.save_pretrained("model")
tokens = torch.arange(10)[None]
with torch.no_grad():
    expected = model(input_ids=tokens).logits
seen = {}
for auto_class in (AutoModelForImageTextToText, AutoModelForCausalLM):
    loaded = auto_class.from_pretrained("model").eval()
    with torch.no_grad():
        is_same = torch.allclose(loaded(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-6)
    is_tied = torch.equal(loaded.lm_head.weight, loaded.get_input_embeddings().weight)
    seen[auto_class.__name__] = (type(loaded).__name__, is_tied, is_same)
    print(f"{auto_class.__name__}: {type(loaded).__name__}, head is the embedding: {is_tied}, the model's logits: {is_same}")
assert seen == {
    "AutoModelForImageTextToText": ("Qwen3_5ForConditionalGeneration", True, True),
    "AutoModelForCausalLM": ("Qwen3_5ForCausalLM", False, False),
}, seen
PY
