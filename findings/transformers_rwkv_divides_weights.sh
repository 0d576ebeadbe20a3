#!/usr/bin/env bash
# transformers 5.23.0 (torch 2.13.0): the first forward pass of an RWKV model in eval mode divides weights of its later
# blocks in place (by 2 every `rescale_every` blocks, 6 by default; made for float16). A model that has run once and is saved
# has the divided weights in its file; loaded again they are divided a second time, and it is another model.
# Seen:
#   before and after a forward pass: the last block's weights differ by a factor of 8
#   saved after that and loaded again: logits differ (by more than 10% of the largest)
#   with rescale_every=0 on loading: weights untouched, the same logits but for what a norm adds to a variance
# Our guard: RWKV is loaded with `rescale_every = 0` (eigenshift/model/loading.py); an export is compared before it runs
# (eigenshift/exporting/checks.py). Test: tests/unit/model/test_loading.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY' 2> "$folder/log"
import torch
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 32, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 24}
config = RwkvConfig(num_hidden_layers=8, rescale_every=2, context_length=16, tie_word_embeddings=False, **sizes)
model = RwkvForCausalLM(config).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.5)
model.save_pretrained("fresh")
tokens = torch.arange(10)[None]


def read(one):
    return one.rwkv.blocks[-1].feed_forward.value.weight.detach().clone()


def run(one):
    with torch.no_grad():
        return one(input_ids=tokens).logits


def compare(found):
    return float((found - expected).abs().max() / expected.abs().max())


before = read(model)
expected = run(model)
ratio = float((before / read(model)).mean())
print(f"before and after a forward pass: the last block's weights differ by a factor of {ratio:.0f}")
model.save_pretrained("used")
difference = compare(run(RwkvForCausalLM.from_pretrained("used").eval()))
print(f"saved after that and loaded again: logits differ by {difference:.0%} of the largest")
kept = RwkvForCausalLM.from_pretrained("fresh", rescale_every=0).eval()
same = compare(run(kept))
print(f"with rescale_every=0 on loading: weights untouched: {torch.equal(read(kept), before)}, logits by {same:.0e}")
assert round(ratio) == 8, ratio
assert difference > 0.1, difference
assert torch.equal(read(kept), before)
assert same < 1e-2, same
PY
