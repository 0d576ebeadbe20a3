"""Make Prefect quiet, offline and at home beside the store.

Must run before `prefect` is imported: Prefect reads these variables once. Whatever the user has
set wins: PREFECT_API_URL names a server to use instead of the embedded one, PREFECT_HOME where its
database lies, and PREFECT_LOGGING_LEVEL=INFO shows Prefect's own log lines.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from eigenshift.base.errors import SettingsError, StorageError

STATE_FOLDER = ".eigenshift"
HOME = "PREFECT_HOME"
MIN_FREE_BYTES = 8 << 20
"""A new database takes 1 to 2 MiB."""
GIVEN_HOME = os.environ.get(HOME)
"""What the user has set, before a default stands in its place."""

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
    os.environ.setdefault(HOME, _find_default_home())
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def create_home(store: str | None = None) -> None:
    """Make Prefect's folder before Prefect is imported; it would not make the parents itself.

    Args:
        store: Root URL of the store that the command is about. Where nobody has said where Prefect
            lives, it is in a local store's folder, and beside no store of another kind: a user's
            own (docs/decisions/0083).

    Raises:
        SettingsError: The folder cannot be made.
        StorageError: Its disk is full: a server of our own would not start, and Prefect waits three
            minutes for it.
    """
    if "prefect" in sys.modules:
        return
    if store is not None and GIVEN_HOME is None:
        os.environ[HOME] = str(choose_home(store))
    home = Path(os.environ[HOME])
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"{home}: expected to make this folder for Prefect's database, found "
            f"{type(error).__name__}: {error.strerror}. Set PREFECT_HOME to a folder that can be "
            "written."
        ) from error
    free = shutil.disk_usage(home).free
    if free < MIN_FREE_BYTES and not os.environ.get("PREFECT_API_URL"):
        raise StorageError(
            f"{home}: expected room for Prefect's database, found {free >> 10:,} KiB. The disk is "
            "full. Free some space (`eigenshift gc` removes what no run needs), choose another "
            "--store, or set PREFECT_HOME to a folder on another disk."
        )


def choose_home(store: str) -> Path:
    """Where Prefect's database lies for runs into a store.

    In a local store, so that no run leaves anything elsewhere. For any other, the working folder's
    where a former version made one, else one of the user's.

    Raises:
        SettingsError: Nothing can be opened by this URL.
    """
    from eigenshift.store.storage import Store  # fsspec: not for every import of this package

    opened = Store(store)
    if opened.is_local:
        return opened.local_path("prefect")
    former = Path(_find_default_home())
    if former.is_dir():
        return former
    states = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(states).expanduser() / "eigenshift" / "prefect"


def _find_default_home() -> str:
    return str(Path.cwd() / STATE_FOLDER / "prefect")
