"""Make Prefect quiet, offline and at home in the project's own folder.

Must run before `prefect` is imported: Prefect reads these variables once. Whatever the user has
set wins: PREFECT_API_URL names a server to use instead of the embedded one, and
PREFECT_LOGGING_LEVEL=INFO shows Prefect's own log lines.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

STATE_FOLDER = ".eigenshift"

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    # A fresh home runs its migrations first, which takes longer than Prefect's 20 s on small
    # machines.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # Our log lines belong to the run in the UI as well.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "eigenshift",
    # Outside of runs (a library call, a worker between tasks) they belong to none.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Prefect prints each task run and, for a failure, a traceback. Our own messages say what went
    # wrong and where; the runs stay in Prefect's database for its UI.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}


def prepare_environment() -> None:
    """Set a default for every Prefect variable we depend on.

    Does nothing where Prefect is already imported: then a worker or a test has configured it.
    """
    if "prefect" in sys.modules:
        return
    os.environ.setdefault("PREFECT_HOME", str(Path.cwd() / STATE_FOLDER / "prefect"))
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def create_home() -> None:
    """Make Prefect's folder before Prefect is imported; it would not make the parents itself."""
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
