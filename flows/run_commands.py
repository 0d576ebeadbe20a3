"""Commands that start a run, and the doctor: load settings, call a flow, print.

With `--json` the last line of stdout is one JSON object, of a run that fails too.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from eigenshift.base.findings import State
from eigenshift.settings import BlockFormat, DetectionSettings, RefreshSettings
from flows.options import (
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_PROMOTED,
    ConfigOption,
    JsonOption,
    PresetOption,
    RequiredStoreOption,
    SetOption,
    StoreOption,
    console,
    load,
    with_settings,
)
from flows.prefect_environment import create_home
from flows.terminal_tables import fits, print_fitting, print_table

logger = logging.getLogger("eigenshift.run")
app = typer.Typer()
MARKS = {
    State.ok: "[green]ok[/]",
    State.warning: "[yellow]warning[/]",
    State.no: "[red]no[/]",
}
TOLERANCE = 1e-6
"""The same work on the same machine gives the same numbers; other machines round differently."""


@app.command()
@with_settings(RefreshSettings)
def refresh(settings: RefreshSettings, as_json: bool) -> None:
    """Run the whole line: read, study, patch, evaluate, release or hold."""
    _prepare(settings)
    from flows.refresh import run_refresh  # Prefect takes seconds to import: only where needed

    with _running(as_json):
        outcome = run_refresh(settings)
    if as_json:
        print(json.dumps(outcome.as_contract()))  # noqa: T201 - the contract's output
    else:
        _print_stages(outcome.stages)
        _print_outcome(outcome)
    raise typer.Exit(EXIT_PROMOTED if outcome.status == "promoted" else EXIT_HELD)


@app.command()
def demo(
    store: StoreOption = None, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Refresh with the bundled model and data, offline: two to three minutes on 2 cores."""
    refresh(preset="demo", store=store, overrides=overrides, as_json=as_json)


@app.command()
@with_settings(RefreshSettings)
def compare(settings: RefreshSettings, as_json: bool) -> None:
    """Compare the interventions and control arms on the same prompts and seeds."""
    _prepare(settings)
    from flows.compare import run_compare

    with _running(as_json):
        comparison = run_compare(settings)
    if as_json:
        print(json.dumps(comparison.as_contract()))  # noqa: T201
        return
    _print_comparison(comparison)


@app.command()
@with_settings(RefreshSettings)
def tune(settings: RefreshSettings, as_json: bool) -> None:
    """Search the number of components and the factor under a fluency budget."""
    _prepare(settings)
    from flows.tune import run_tune

    with _running(as_json):
        tuning = run_tune(settings)
    if not as_json:
        _print_stages(tuning.stages)
    _print_result(tuning.as_contract(), tuning.columns, tuning.rows, as_json, keys=3)
    if not as_json:
        console.print(f"Plot: {tuning.figure}", highlight=False, soft_wrap=True)
        console.print(tuning.advice, highlight=False, soft_wrap=True)


@app.command()
@with_settings(DetectionSettings)
def detect(settings: DetectionSettings, as_json: bool) -> None:
    """Find which units and layers detect toxicity, in models of any kind; change nothing."""
    _prepare(settings, only_detects=True)
    from flows.audit_commands import print_paper_tables
    from flows.detect import run_detect

    with _running(as_json):
        detection = run_detect(settings)
    if as_json:
        print(json.dumps(detection.as_contract()))  # noqa: T201
        return
    _print_stages(detection.stages)
    print_paper_tables(settings.store, detection.run_id, console)
    console.print(f"Run {detection.run_id}", highlight=False)


@app.command()
def benchmark(
    run: Annotated[
        str | None, typer.Argument(help="Run with a patch; by default the latest refresh.")
    ] = None,
    store: RequiredStoreOption = "./.eigenshift",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", help="A task of lm-eval, or a folder of task files. Repeat."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions of each task, the first ones.")
    ] = None,
    arm: Annotated[
        str | None, typer.Option("--arm", help="Which patch; by default the one that was judged.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask base and patched model the same benchmark questions (piqa unless told otherwise)."""
    _prepare_about(store, run)
    from eigenshift.reporting.benchmark_tables import COLUMNS, EXPLANATION
    from flows.benchmarking import run_benchmark

    given = list(overrides or [])
    if tasks:
        given.append(f"benchmark.tasks={json.dumps(tasks)}")
    if limit is not None:
        given.append(f"benchmark.limit={limit}")
    with _running(as_json):
        found = run_benchmark(store, run, arm, given)
    _print_result(found.as_contract(), COLUMNS, found.rows, as_json, keys=2)
    if not as_json:
        console.print(EXPLANATION, highlight=False, soft_wrap=True)
        console.print(f"Run {found.run_id}, about run {found.about}", highlight=False)


@app.command()
def survive(
    run: Annotated[
        str | None, typer.Argument(help="Run with a patch; by default the latest refresh.")
    ] = None,
    store: RequiredStoreOption = "./.eigenshift",
    formats: Annotated[
        list[BlockFormat] | None,
        typer.Option(
            "--format", help="GGUF format to round to. Repeat; by default Q8_0, Q6_K, Q4_K, Q4_0."
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="Round all linear layers, not only the weights the patch changes."
        ),
    ] = False,
    arm: Annotated[
        str | None, typer.Option("--arm", help="Which patch; by default the one that was judged.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how much of a patch is left once weights are rounded to GGUF formats."""
    _prepare_about(store, run)
    from eigenshift.reporting.survival_tables import COLUMNS, EXPLANATION
    from flows.surviving import run_survive

    with _running(as_json):
        found = run_survive(store, run, arm, formats or (), overrides or (), is_whole=whole)
    _print_result(found.as_contract(), COLUMNS, found.rows, as_json, keys=3)
    if not as_json:
        console.print(EXPLANATION, highlight=False, soft_wrap=True)
        console.print(f"Run {found.run_id}, about run {found.about}", highlight=False)


@app.command()
def reproduce(
    file: Annotated[
        str, typer.Argument(help="reproduce.json of an export, or of a store's reproductions/.")
    ],
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Where the repeated run goes; what is there already is not done again. By default "
            "a folder that is removed at the end.",
        ),
    ] = None,
    overrides: SetOption = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            min=0,
            help="Numbers may differ by so much of the recorded one; of one below 1, by so much.",
        ),
    ] = TOLERANCE,
    as_json: JsonOption = False,
) -> None:
    """Repeat the run of a release from its file, and say which number differs by how much."""
    from eigenshift.readiness.preflight import require_writable
    from eigenshift.settings import settle_settings
    from eigenshift.store.scratch import scratch_folder
    from eigenshift.upkeep.reproduction import read_reproduction

    reproduction = read_reproduction(file)
    given = list(overrides or [])
    where = json.dumps(store or str(scratch_folder() / "store"))
    settings = settle_settings(
        RefreshSettings,
        reproduction.settings,
        Path(file).resolve().parent,
        [f"store={where}", *given],
        file,
    )
    # What the run read is looked at by `check_inputs`, which says what differs from then.
    require_writable(settings.store)
    _start_prefect(store)  # without a store that stays, in the working folder
    from flows.reproduce import run_reproduction

    with _running(as_json):
        replay = run_reproduction(reproduction, settings, tolerance=tolerance, overrides=given)
    if as_json or replay.differences:
        _print_result(replay.as_contract(), replay.columns, replay.rows, as_json)
    if not as_json:
        for line in (*replay.notes, replay.summary):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_PROMOTED if replay.is_equal else EXIT_FAILED)


@app.command()
def doctor(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
) -> None:
    """Tell what this machine and these settings can and cannot do: ok, warning or no.

    Exit code 1 where there is a no: a run would fail.
    """
    from eigenshift.readiness.diagnosis import diagnose
    from flows.server_check import check_server

    is_bare = preset is None and config is None and not overrides
    settings = (
        None
        if is_bare
        else load(RefreshSettings, preset=preset, config=config, store=store, overrides=overrides)
    )
    findings = [*diagnose(settings, store), check_server()]
    table = Table("", "what", "found", show_edge=False)
    for finding in findings:
        found = escape(finding.detail)
        if finding.remedy:
            found += f"\n[bold]{escape(finding.remedy)}[/]"
        table.add_row(MARKS[finding.state], finding.name, found)
    console.print(table)
    counts = Counter(finding.state for finding in findings)
    console.print(", ".join(f"{counts[state]} {state.value}" for state in State if counts[state]))
    raise typer.Exit(EXIT_FAILED if counts[State.no] else EXIT_PROMOTED)


def _prepare(settings: RefreshSettings, *, only_detects: bool = False) -> None:
    """Before Prefect is imported: that takes seconds, and a server of its own some more.

    Args:
        settings: Of the run.
        only_detects: Whether it generates and judges nothing.

    Raises:
        EigenShiftError: Something that the run reads is not there, or its store cannot be written.
    """
    from eigenshift.readiness.preflight import require_inputs, require_writable

    if settings.execution.credentials_block is None:  # else Prefect has them: the flow looks
        require_inputs(settings, only_detects=only_detects)
        require_writable(settings.store)
    _start_prefect(settings.store)


def _prepare_about(store: str, run: str | None) -> None:
    """The same for a run about another, which is in the store already.

    Raises:
        SettingsError: The place is no store, or has no such run.
    """
    from eigenshift.ledger.runs import choose_run
    from eigenshift.store.storage import Store

    opened = Store(store)
    choose_run(opened, run)
    opened.check_writable()
    _start_prefect(store)


def _start_prefect(store: str | None) -> None:
    create_home(store)
    logger.info("starting Prefect, with a server of its own unless PREFECT_API_URL names one")


@contextmanager
def _running(as_json: bool) -> Iterator[None]:
    """Around a run: its server is there, and with `--json` one that fails ends with JSON too."""
    from eigenshift.reporting.outcomes import FAILED_RUN
    from flows.server_check import end_own_server, explain_server_fault, require_server
    from flows.stopping import ending_by_signals, on_stop

    try:
        with ending_by_signals(says_last=as_json), on_stop(end_own_server):
            require_server()
            yield
    except BaseException as error:
        if as_json and hasattr(error, FAILED_RUN):
            print(json.dumps(getattr(error, FAILED_RUN)), flush=True)  # noqa: T201
        fault = explain_server_fault(error)
        if fault is not None:
            raise fault from error
        raise


def _print_comparison(comparison: Any) -> None:
    """All columns where there is room for them, else those that are read first."""
    _print_stages(comparison.stages)
    left_out: list[str] = []
    if fits(console, comparison.columns, comparison.rows):
        print_table(console, comparison.columns, comparison.rows)
    else:
        left_out = print_fitting(console, comparison.essentials)
    columns, rows = comparison.degeneration_columns, comparison.degeneration_rows
    if not fits(console, columns, rows):
        rows = [[cell.partition(" [")[0] for cell in row] for row in rows]
    print_table(console, columns, rows)
    notes = list(comparison.notes)
    if left_out:
        notes.append(
            f"Not shown in {console.width} columns: {', '.join(left_out)}, and intervals. In a "
            "wider window they are, by --json, and by `eigenshift audit --ask paper_rq3`."
        )
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _print_stages(stages: Sequence[Any]) -> None:
    """What took how long, before the result; with `-q` the result alone is told."""
    if not stages or not logger.isEnabledFor(logging.INFO):
        return
    from eigenshift.reporting.stage_tables import COLUMNS, summarise_stages, tabulate_stages

    rows = tabulate_stages(stages)
    if rows:
        print_table(console, COLUMNS, rows)
    console.print(summarise_stages(stages), highlight=False, soft_wrap=True)
    console.print()


def _print_outcome(outcome: Any) -> None:
    from eigenshift.reporting.outcomes import describe_scorers

    colour = "green" if outcome.status == "promoted" else "red"
    console.print(f"[bold]{escape(outcome.model_id)}: [{colour}]{outcome.status}[/][/]")
    console.print()
    _print_headline(outcome)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="bold")
    for caveat in outcome.caveats:
        lines.add_row("  [yellow]mind[/]", escape(caveat))
    for line in describe_scorers(outcome.quality):
        lines.add_row("  scorer", escape(line))
    for check in outcome.checks:
        lines.add_row(f"  {_mark_check(check)}", _describe_check(check))
    console.print(lines)
    if outcome.release is not None:
        note = "made" if outcome.is_new_release else "already in force, nothing new to release"
        console.print(f"Release {outcome.release} ({note}), run {outcome.run_id}", soft_wrap=True)
    else:
        console.print(f"No release: held by the gate. Run {outcome.run_id}")
    store = _shorten(outcome.store)
    console.print("Next, try:")
    for line in (
        f'  eigenshift audit --store {store} "{EXAMPLE_QUESTION}"',
        f"  eigenshift report --store {store} --out report.html",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_headline(outcome: Any) -> None:
    """Before, after and the controls; where there is no room, intervals are below their values."""
    from eigenshift.reporting.outcomes import HEADLINE_COLUMNS

    rows = outcome.headline
    if not fits(console, HEADLINE_COLUMNS, rows):
        rows = [
            [
                label.replace(" ", "\n"),
                *(cell.replace(" [", "\n[").replace(" (", "\n(") for cell in row),
            ]
            for label, *row in rows
        ]
    print_table(console, HEADLINE_COLUMNS, rows)


TOLD = "told, not required: "


def _mark_check(check: Mapping[str, Any]) -> str:
    if not check["is_passed"]:
        return "[red]failed[/]"
    return "[yellow]told[/]" if check["name"].startswith(TOLD) else "[green]passed[/]"


def _describe_check(check: Mapping[str, Any]) -> str:
    line = f"{check['name'].removeprefix(TOLD)}: {check['found']}"
    if check["is_passed"]:
        return escape(line)
    missed = f", missed by {check['missed_by']}" if check.get("missed_by") else ""
    return escape(f"{line}; expected {check['expected']}{missed}")


EXAMPLE_QUESTION = (
    "select dataset, layer, site, round(probe_auroc, 3) probe, round(best_neuron_auroc, 3) neuron "
    "from layers where run_id = (select max(run_id) from layers) order by probe desc"
)


def _print_result(
    contract: dict[str, Any],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    as_json: bool,
    keys: int = 1,
) -> None:
    if as_json:
        print(json.dumps(contract))  # noqa: T201
        return
    print_table(console, columns, rows, keys=keys)


def _shorten(root: str) -> str:
    path = Path(root.removeprefix("file://"))
    return os.path.relpath(path) if root.startswith("file://") else root
