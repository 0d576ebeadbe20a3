"""The command line: parse, call one flow or one library function, print, exit with a code.

Exit codes: 0 done or promoted, 3 held by the gate, 2 bad settings or input, 1 anything else; 143
and 130 of a command that SIGTERM or Ctrl-C stopped.
Results go to stdout, progress and logs to stderr. With `--json` the last line of stdout is one
JSON object. Commands that start a run are `run_commands.py`'s, those about a store
`store_commands.py`'s, those about a model `model_commands.py`'s, those about a scorer
`scorer_commands.py`'s; sizing a run is `plan_commands.py`'s.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer

from eigenshift.base.errors import INPUT_ERRORS, EigenShiftError, SettingsError
from flows import model_commands, plan_commands, run_commands, scorer_commands, store_commands
from flows.log_format import make_formatter
from flows.options import EXIT_BAD_INPUT, EXIT_FAILED, err_console
from flows.stopping import EXIT_INTERRUPTED, leave_interrupted

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find what makes a language model generate toxicity, damp it, prove it, audit it by SQL.",
)
app.add_typer(run_commands.app)
app.add_typer(store_commands.app)
app.add_typer(model_commands.app)
app.add_typer(scorer_commands.app)
app.add_typer(plan_commands.app)
USAGE_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if "Click" in base.__name__)
"""Wrong words on the command line; newer typers carry a click of their own, so it is looked up."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; every error of ours becomes one clear message."""
    code = _run(lambda: _start(arguments))
    if code == EXIT_INTERRUPTED:
        leave_interrupted()
    sys.exit(code)


def _start(arguments: Sequence[str] | None) -> Any:
    _configure_logging()
    return app(args=arguments, standalone_mode=False)


def _run(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except INPUT_ERRORS as error:
        _print_error(str(error))
        return EXIT_BAD_INPUT
    except EigenShiftError as error:
        _print_error(str(error))
        return EXIT_FAILED
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.Abort:
        return EXIT_FAILED
    except USAGE_ERROR as error:
        error.show(file=sys.stderr)
        return EXIT_BAD_INPUT
    return int(code or 0)


def _configure_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(os.environ.get("EIGENSHIFT_LOG_FORMAT", "text")))
    library = logging.getLogger("eigenshift")
    level = os.environ.get("EIGENSHIFT_LOG_LEVEL", "INFO")
    if not isinstance(logging.getLevelName(level.upper()), int):
        raise SettingsError(
            f"EIGENSHIFT_LOG_LEVEL: expected DEBUG, INFO, WARNING or ERROR, found {level!r}."
        )
    library.setLevel(level.upper())
    library.handlers = [handler]
    library.propagate = False


def _print_error(message: str) -> None:
    err_console.print(
        f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True
    )


if __name__ == "__main__":  # `python -m flows.command_line`, as `python -m flows`
    main()
