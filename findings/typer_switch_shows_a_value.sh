#!/usr/bin/env bash
# typer 0.29.2 on Python 3.11: the help of a switch, which takes no value, shows the type `<bool>` behind it, so
# that `--json true` looks right; `true` is then an unexpected argument (exit code 2).
# Seen:
#   help: --json <bool> Print JSON.
#   --json: 0
#   --json true: 2
# Our guard: `build_command` in flows/command_line.py gives switches an empty metavar; tests/flows/test_command_line.py
# looks at the help of every command.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check typer==0.29.2
cd "$folder"
cat > program.py <<'PY'
from typing import Annotated

import typer


def main(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Do something."""


typer.run(main)
PY
help=$(COLUMNS=80 venv/bin/python program.py --help | grep -- --json | tr -d '│' | xargs)
code() { venv/bin/python program.py "$@" > /dev/null 2>&1 && echo 0 || echo $?; }
plain=$(code --json)
valued=$(code --json true)
echo "help: $help"
echo "--json: $plain"
echo "--json true: $valued"
[ "$help" = "--json <bool> Print JSON." ] && [ "$plain" = 0 ] && [ "$valued" = 2 ]
