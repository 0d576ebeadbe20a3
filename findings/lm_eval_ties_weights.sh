#!/usr/bin/env bash
# lm-eval 0.4.13 (torch 2.13.0, transformers 5.23.0): wrapping a model that is in memory, `HFLM(pretrained=model)`,
# calls `model.tie_weights()`. A model whose configuration ties its head, but whose head was given weights of
# its own, e.g. to measure a change of it, loses them without a word: what is evaluated is the unchanged model.
# Seen:
#   head of its own: True, all zeros: True
#   after HFLM(pretrained=model): head of its own: False, all zeros: False
#   given its own weights after that, it keeps them: True
# Our guard: the model is wrapped before a patch is in force (eigenshift/benchmarks/harness.py; its tests compare
# with the harness on the patched model saved to disk).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    lm-eval==0.4.13 torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 4}
model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes))
words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<end>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def is_own():
    return model.lm_head.weight is not model.transformer.wte.weight


def give_head():
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(4, 8))


give_head()
before = is_own(), not model.lm_head.weight.any().item()
print(f"head of its own: {before[0]}, all zeros: {before[1]}")
HFLM(pretrained=model, tokenizer=tokenizer)
after = is_own(), not model.lm_head.weight.any().item()
print(f"after HFLM(pretrained=model): head of its own: {after[0]}, all zeros: {after[1]}")
give_head()
print(f"given its own weights after that, it keeps them: {is_own()}")
assert before == (True, True), before
assert after == (False, False), after
assert is_own()
PY
