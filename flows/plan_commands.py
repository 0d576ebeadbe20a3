"""The command that sizes a run before it is started: `plan`. No run is started, no model loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from eigenshift.settings import RefreshSettings
from flows.options import (
    ConfigOption,
    JsonOption,
    PresetOption,
    SetOption,
    StoreOption,
    console,
    load,
)
from flows.terminal_tables import print_table

app = typer.Typer()


@app.command()
def plan(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Take base rate and correlation from a run; 'latest' will do."),
    ] = None,
    base_rate: Annotated[
        float | None,
        typer.Option("--base-rate", min=0, max=1, help="Toxic share of the base's continuations."),
    ] = None,
    correlation: Annotated[
        float | None,
        typer.Option("--correlation", min=0, max=1, help="Of continuations of one prompt, 0 to 1."),
    ] = None,
    reductions: Annotated[
        list[float] | None,
        typer.Option(
            "--reduction", min=0, max=1, help="Relative fall to be shown, 0 to 1. Repeat."
        ),
    ] = None,
    continuations: Annotated[
        list[int] | None,
        typer.Option("--continuations", min=1, help="Continuations per prompt. Repeat."),
    ] = None,
    power: Annotated[
        float, typer.Option("--power", min=0.05, max=0.999, help="Chance to show it.")
    ] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Tell how many prompts, with how many continuations each, show which fall of toxicity."""
    from eigenshift.evaluation.power import Demand
    from eigenshift.reporting.planning import (
        CONTINUATIONS,
        REDUCTIONS,
        assume_basis,
        make_plan,
        measure_basis,
    )

    if run is not None and (base_rate is not None or correlation is not None):
        raise typer.BadParameter("give either --run or --base-rate and --correlation")
    settings = (
        None
        if preset is None and config is None
        else load(RefreshSettings, preset=preset, config=config, store=store, overrides=overrides)
    )
    basis = (
        assume_basis(base_rate, correlation)
        if run is None
        else measure_basis(
            store or (settings.store if settings is not None else "./.eigenshift"),
            None if run == "latest" else run,
        )
    )
    sizes = continuations or list(CONTINUATIONS)
    if settings is not None and not continuations:
        sizes = sorted({*sizes, settings.generation.n_samples})
    demand = Demand(
        power=power, confidence=0.95 if settings is None else settings.evaluation.confidence
    )
    found = make_plan(basis, reductions or REDUCTIONS, sizes, demand, settings)
    if as_json:
        print(json.dumps(found.as_contract()))  # noqa: T201 - the contract's output
        return
    print_table(console, found.columns, found.rows)
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
