#!/usr/bin/env bash
# datasets 5.2.0 (pandas 3.1.1, pyarrow 26.0.1): `load_dataset("csv", ...)` reads by pandas with its defaults, so a
# text that is "None", "NA", "null" or "nan" becomes nothing, and an id 0001 becomes 1. `load_dataset("json", ...)` reads
# by pyarrow, which makes timestamps of texts if all of a block look like dates. No error, no warning.
# Seen:
#   csv: ids [1, 2, 3, 4, 5], texts [None, None, None, None, 'tea']
#   json: text is timestamp[s]
# Our guard: CSV and JSON are read by our own readers, wherever they are (eigenshift/datasets/huggingface.py; its tests).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PY'
import json

from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
texts = ["None", "NA", "null", "nan", "tea"]
with open("t.csv", "w") as file:
    file.write("id,text\n" + "".join(f"000{n},{text}\n" for n, text in enumerate(texts, 1)))
with open("t.jsonl", "w") as file:
    file.writelines(json.dumps({"text": f"2020-01-0{day}"}) + "\n" for day in (1, 2))
table = load_dataset("csv", data_files="t.csv", split="train")
print(f"csv: ids {table['id'][:]}, texts {table['text'][:]}")
dates = load_dataset("json", data_files="t.jsonl", split="train")
print(f"json: text is {dates.features['text'].dtype}")
assert table["id"][:] == [1, 2, 3, 4, 5]
assert table["text"][:] == [None, None, None, None, "tea"]
assert dates.features["text"].dtype == "timestamp[s]"
PY
