"""Options that commands share, and what they do with them.

The commands themselves are `run_commands.py`'s and `store_commands.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eigenshift.base.errors import SettingsError
from eigenshift.settings import (
    AnySettings,
    RefreshSettings,
    find_preset,
    list_presets,
    list_setting_paths,
    load_settings_as,
)

EXIT_PROMOTED, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_HELD = 0, 1, 2, 3

console = Console()
err_console = Console(stderr=True)


def complete_preset(typed: str) -> list[str]:
    """Presets that a shell offers after `--preset`."""
    return [name for name in list_presets() if name.startswith(typed)]


def complete_setting(typed: str) -> list[str]:
    """Fields that a shell offers after `--set`."""
    return [path for path in list_setting_paths(RefreshSettings) if path.startswith(typed)]


PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help=f"Shipped settings: {', '.join(list_presets())}.",
        autocompletion=complete_preset,
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Root URL of the store (overrides the settings).")
]
RequiredStoreOption = Annotated[str, typer.Option("--store", help="Root URL of the store.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one setting: key.path=value. Repeat.",
        autocompletion=complete_setting,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
AgainstOption = Annotated[str | None, typer.Option("--against", help="Run to compare it with.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Run id; by default the latest.")]


Command = Callable[[AnySettings, bool], None]
"""Takes the settings, and whether to print one JSON object."""


def with_settings(kind: type[AnySettings]) -> Callable[[Command[AnySettings]], Callable[..., None]]:
    """Give a command that starts a run the options all of them have.

    Args:
        kind: The settings it takes.
    """

    def decorate(command: Command[AnySettings]) -> Callable[..., None]:
        def start(
            preset: PresetOption = None,
            config: ConfigOption = None,
            store: StoreOption = None,
            overrides: SetOption = None,
            as_json: JsonOption = False,
        ) -> None:
            command(
                load(kind, preset=preset, config=config, store=store, overrides=overrides), as_json
            )

        start.__name__, start.__doc__ = command.__name__, command.__doc__
        return start

    return decorate


def load(
    kind: type[AnySettings],
    *,
    preset: str | None,
    config: Path | None,
    store: str | None,
    overrides: Sequence[str] | None,
) -> AnySettings:
    """Read the settings that the options name.

    Raises:
        SettingsError: They are wrong, or both or neither of preset and file are given.
    """
    given = list(overrides or [])
    if store is not None:
        given.append(f"store={json.dumps(store)}")
    if preset is None and config is None:
        raise SettingsError(
            f"settings: expected --preset or --config, found neither. Presets are "
            f"{', '.join(list_presets())} (`eigenshift demo` is the first to try); `eigenshift "
            "init` writes a file for a model and texts of yours."
        )
    if preset is not None and config is not None:
        raise SettingsError(
            f"settings: expected --preset or --config, found both: preset {preset} and {config}. "
            "A file stands in a preset's place: leave one of them out, and change single "
            "settings by --set key.path=value."
        )
    return load_settings_as(kind, config or find_preset(preset or ""), given)
