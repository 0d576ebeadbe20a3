#!/usr/bin/env bash
# prefect 3.8.8 on Python 3.11: loading a flow by its file (`folder/flow.py:main`, as a deployment's entry point has
# it) leaves that file's folder and the working folder at the front of sys.path for the rest of the process. A
# module beside the flow then hides a library of the same name from every later import, of other packages too.
# Loaded as a module (`folder.flow.main`) the same flow leaves sys.path as it was.
# Seen:
#   by file: 2 folders more at the front of sys.path; wave is the file beside the flow
#   as a module: 0 folders more at the front of sys.path; wave is Python's
# Our guard: deployments/prefect.yaml names flows as modules (docs/decisions/0078).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prefect==3.8.8
mkdir "$folder/work" "$folder/work/mine"
cd "$folder/work"
touch mine/__init__.py
echo 'HERE = "mine"' > mine/wave.py
printf 'from prefect import flow\n\n\n@flow\ndef main():\n    pass\n' > mine/flow.py
cat > load.py <<'PY'
import sys

from prefect.flows import load_flow_from_entrypoint

sys.path = [place for place in sys.path if place not in ("", sys.argv[2])]
before = list(sys.path)
load_flow_from_entrypoint(sys.argv[1])
n_more = len(sys.path) - len(before)
assert sys.path[n_more:] == before
import wave

whose = "the file beside the flow" if hasattr(wave, "HERE") else "Python's"
print(f"{n_more} folders more at the front of sys.path; wave is {whose}")
PY
load() {
  HOME="$folder" DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false \
    "$folder/venv/bin/python" load.py "$1" "$folder/work"
}
file=$(load mine/flow.py:main)
module=$(load mine.flow.main)
echo "by file: $file"
echo "as a module: $module"
[ "$file" = "2 folders more at the front of sys.path; wave is the file beside the flow" ]
[ "$module" = "0 folders more at the front of sys.path; wave is Python's" ]
