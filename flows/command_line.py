"""The command line: parse, call one flow or one library function, print, exit with a code.

Exit codes: 0 done or promoted, 3 held by the gate, 2 bad settings or input, 1 anything else; 143
and 130 of a command that SIGTERM or Ctrl-C stopped.
Results go to stdout, progress and logs to stderr. With `--json` the last line of stdout is one
JSON object. Commands that start a run are `run_commands.py`'s, those about a store
`store_commands.py`'s, those about a model `model_commands.py`'s, those about a scorer
`scorer_commands.py`'s; sizing a run is `plan_commands.py`'s, writing settings
`settings_commands.py`'s.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from eigenshift import __version__
from eigenshift.base.errors import INPUT_ERRORS, EigenShiftError, SettingsError
from flows import (
    model_commands,
    plan_commands,
    run_commands,
    scorer_commands,
    settings_commands,
    store_commands,
)
from flows.log_format import ScreenHandler, make_formatter
from flows.options import EXIT_BAD_INPUT, EXIT_FAILED, err_console
from flows.stopping import EXIT_INTERRUPTED, leave_interrupted

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    help="Find what makes a language model generate toxicity, damp it, prove it, audit it by SQL.",
)
app.add_typer(settings_commands.app)
app.add_typer(run_commands.app)
app.add_typer(store_commands.app)
app.add_typer(model_commands.app)
app.add_typer(scorer_commands.app)
app.add_typer(plan_commands.app)
USAGE_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if "Click" in base.__name__)
"""Wrong words on the command line; newer typers carry a click of their own, so it is looked up."""


EVERYWHERE = ("quiet", "verbose")
"""Options that may stand before the command or behind it."""


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"eigenshift {__version__}")  # noqa: T201
        raise typer.Exit


def _say_less(is_asked: bool) -> None:
    if is_asked:
        logging.getLogger("eigenshift").setLevel(logging.WARNING)


def _say_more(is_asked: bool) -> None:
    if is_asked:
        logging.getLogger("eigenshift").setLevel(logging.DEBUG)


@app.callback()
def _take_options_of_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            *("--quiet", "-q"),
            callback=_say_less,
            help="Say nothing while at work but warnings (EIGENSHIFT_LOG_LEVEL=WARNING).",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            *("--verbose", "-v"),
            callback=_say_more,
            help="Tell of every piece of work (EIGENSHIFT_LOG_LEVEL=DEBUG).",
        ),
    ] = False,
) -> None:
    """Their callbacks do what they ask for."""


def build_command() -> Any:
    """The whole command line, as click knows it.

    Every command takes `EVERYWHERE` as well, and a flag shows no `<bool>`: it takes no value.
    """
    root: Any = typer.main.get_command(app)
    shared = [option for option in root.params if option.name in EVERYWHERE]
    for option in shared:
        option.expose_value = False
    for command in (root, *root.commands.values()):
        if command is not root:
            command.params.extend(shared)
        context = typer.Context(command, help_option_names=["--help", "-h"])
        for option in command.get_params(context):
            if getattr(option, "is_flag", False):
                option.metavar = ""
    return root


LOUD_IMPORTS = ("torchao", "torch.utils._pytree")
"""Where they are installed, transformers imports them with a model, and they warn of kernels for
devices that are not there and of each other's future."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; every error of ours becomes one clear message."""
    code = _run(lambda: _start(arguments))
    if code == EXIT_INTERRUPTED:
        leave_interrupted()
    sys.exit(code)


def _start(arguments: Sequence[str] | None) -> Any:
    _configure_logging()
    return build_command()(args=arguments, standalone_mode=False)


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
    handler = ScreenHandler()
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
    for name in LOUD_IMPORTS:
        logging.getLogger(name).setLevel(logging.ERROR)


def _print_error(message: str) -> None:
    err_console.print(
        f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True
    )


if __name__ == "__main__":  # `python -m flows.command_line`, as `python -m flows`
    main()
