#!/usr/bin/env bash
# lm-eval 0.4.13 (datasets 5.2.0): a task file's relative `dataset_kwargs.data_files` are looked for in the working
# folder of the process, not beside the task file, though its `include` and `!function` are relative to the file.
# A folder with a task and its CSV is found by `--include_path` from anywhere and loads from inside only.
# Seen:
#   from the task's folder: 1 question
#   from elsewhere: FileNotFoundError
# Our guard: paths are made absolute from the task file's folder before the harness sees them
# (eigenshift/benchmarks/tasks.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check lm-eval==0.4.13 datasets==5.2.0
mkdir "$folder/tasks" "$folder/elsewhere"
printf 'goal,sol1,sol2,label\nThe kettle is,warm.,a river.,0\n' > "$folder/tasks/small.csv"
cat > "$folder/tasks/small.yaml" <<'YAML'
task: small
dataset_path: csv
dataset_kwargs: {data_files: {test: small.csv}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{goal}}"
doc_to_choice: "{{[sol1, sol2]}}"
doc_to_target: label
YAML
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PY' 2> "$folder/log"
import os
from pathlib import Path

from lm_eval.tasks import TaskManager

tasks = str(Path("tasks").resolve())


def load():
    return TaskManager(include_path=tasks, include_defaults=False).load(["small"])["tasks"]["small"]


os.chdir("tasks")
print(f"from the task's folder: {len(load().eval_docs)} question", flush=True)
os.chdir("../elsewhere")
try:
    load()
    found = "it loads"
except Exception as error:
    found = type(error).__name__
print(f"from elsewhere: {found}", flush=True)
assert found == "FileNotFoundError", found
PY
