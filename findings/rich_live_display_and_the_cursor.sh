#!/usr/bin/env bash
# rich 15.0.0 on Python 3.11, in a terminal: a live display (progress bars are one) hides the cursor, and shows it
# again when it is stopped; a process that ends without its clearing up (`os._exit`, as after a second signal) leaves
# the terminal without one. And what the program prints to stdout meanwhile goes to the display's stream, here stderr.
# Seen:
#   hidden: True, shown again: False
#   stdout: nothing
# Our guard: flows/heartbeat.py shows the cursor at once and leaves stdout alone; tests/flows/test_heartbeat.py runs it
# in a terminal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check rich==15.0.0
cd "$folder"
cat > program.py <<'PY'
import os
import sys

from rich.console import Console
from rich.live import Live

live = Live("at work", console=Console(stderr=True))
live.start()
print("a result")
sys.stdout.flush()
os._exit(0)
PY
venv/bin/python - <<'PY'
import os
import pty
import subprocess
import sys

ours, its = pty.openpty()
program = subprocess.run(
    [sys.executable, "program.py"],
    env={**os.environ, "TERM": "xterm"},
    stdout=subprocess.PIPE,
    stderr=its,
    check=True,
)
os.close(its)
shown = b""
while True:
    try:
        shown += os.read(ours, 65536)
    except OSError:
        break
hides, shows = b"\x1b[?25l" in shown, b"\x1b[?25h" in shown
print(f"hidden: {hides}, shown again: {shows}")
print(f"stdout: {program.stdout.decode().strip() or 'nothing'}")
assert (hides, shows, program.stdout) == (True, False, b""), (shown, program.stdout)
assert b"a result" in shown, shown
PY
