"""Saved questions: SQL over the audit views about one run, by name.

Each is a file in `sql/audit/` whose first line says what it answers; `{run}` stands for the run.
"""

from __future__ import annotations

from importlib import resources

from eigenshift.errors import SettingsError

DESCRIBED_COMMANDS = ("refresh", "detect")
"""Commands whose latest run is meant where none is named."""
FOLDER = resources.files("eigenshift").joinpath("sql").joinpath("audit")


def list_questions() -> dict[str, str]:
    """Return the name of every saved question and what it answers, by name."""
    names = sorted(
        item.name.removesuffix(".sql") for item in FOLDER.iterdir() if item.name.endswith(".sql")
    )
    return {name: _read(name).partition("\n")[0].removeprefix("--").strip() for name in names}


def fill_question(name: str, run_id: str) -> str:
    """Return a question's SQL about one run.

    Raises:
        SettingsError: There is no such question.
    """
    if name not in list_questions():
        raise SettingsError(
            f"--ask: expected one of {', '.join(list_questions())}, found {name!r}. "
            "See `eigenshift audit --list`."
        )
    return _read(name).replace("{run}", "'" + run_id.replace("'", "''") + "'")


def _read(name: str) -> str:
    return FOLDER.joinpath(f"{name}.sql").read_text("utf-8")
