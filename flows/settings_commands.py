"""The command that writes a settings file for a model and texts of one's own: `init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from eigenshift.base.errors import SettingsError
from eigenshift.settings import SourceFormat, compose_settings, find_absent
from flows.options import StoreOption, console, err_console

app = typer.Typer()


def complete_source(typed: str) -> list[str]:
    """Formats that a shell offers after `--source`."""
    return [item.value for item in SourceFormat if item.value.startswith(typed)]


@app.command()
def init(
    model: Annotated[str, typer.Option("--model", help="Hugging Face id, or a model's folder.")],
    sources: Annotated[
        list[str],
        typer.Option(
            "--source",
            help="Texts as FORMAT=PLACE, e.g. jigsaw=train.csv, or a mapping {format: ..., uri: "
            "..., columns: ...}. Repeat: labelled texts, prompts and neutral texts are needed.",
            autocompletion=complete_source,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New file.")] = Path("settings.yaml"),
    store: StoreOption = None,
    shows_all: Annotated[
        bool, typer.Option("--all", help="Write every section, not the essential ones alone.")
    ] = False,
) -> None:
    """Write a commented settings file for a model and texts of yours."""
    folder = out.resolve().parent
    if out.exists():
        raise SettingsError(
            f"{out}: expected a new file, found one that is there, which is not replaced. Choose "
            "another name with --out, or remove it."
        )
    text = compose_settings(model, sources, folder, store=store, shows_all=shows_all)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise SettingsError(
            f"{out}: expected to write a file, found: {error.strerror or error}. Choose another "
            "place with --out."
        ) from error
    for place in find_absent(text, folder):
        err_console.print(
            f"note: {place} is not there yet", markup=False, highlight=False, soft_wrap=True
        )
    name = shlex.quote(str(out))
    for line in (
        f"Wrote {out}.",
        "Next, try:",
        f"  eigenshift doctor --config {name}",
        f"  eigenshift refresh --config {name}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
