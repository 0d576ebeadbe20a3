#!/usr/bin/env bash
# gguf 0.19.0: the name map of the public converter has no place for an output head beside the input embedding
# in some architectures. A fine-tune with a head of its own cannot become a GGUF there: llama.cpp's converter
# fails for Cohere, and for Gemma and Gemma 2 it skips the tensor (a line at debug level) and writes the model
# without it, which then runs with the embedding as its head.
# Seen:
#   llama: output.weight    gemma3: output.weight
#   gemma, gemma2, command-r, cohere2, bitnet: no name
# Our guard: a warning at export, the card, and `--target gguf` refuses (eigenshift/exporting/targets.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import TensorNameMap

HEADLESS = {"gemma", "gemma2", "command-r", "cohere2", "bitnet"}
for architecture in MODEL_ARCH:
    name = MODEL_ARCH_NAMES[architecture]
    if name in HEADLESS | {"llama", "gemma3"}:
        found = TensorNameMap(architecture, 1).get_name("lm_head.weight", (".weight", ".bias"))
        print(f"{name}: {found or 'no name'}")
        assert (found is None) == (name in HEADLESS)
PY
