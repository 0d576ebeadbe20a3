"""The command line: parse, call one flow or one library function, print, exit with a code.

Exit codes: 0 done or promoted, 3 held by the gate, 2 bad settings or input, 1 anything else.
Results go to stdout, progress and logs to stderr. With `--json` the last line of stdout is one
JSON object.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eigenshift.errors import INPUT_ERRORS, EigenShiftError, SettingsError
from eigenshift.settings import (
    AnySettings,
    DetectionSettings,
    RefreshSettings,
    find_preset,
    list_presets,
    load_settings_as,
)
from flows.log_format import make_formatter
from flows.prefect_environment import create_home
from flows.terminal_tables import print_table

EXIT_PROMOTED, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_HELD = 0, 1, 2, 3

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find what makes a language model generate toxicity, damp it, prove it, audit it by SQL.",
)
USAGE_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if "Click" in base.__name__)
"""Wrong words on the command line; newer typers carry a click of their own, so it is looked up."""
console = Console()
err_console = Console(stderr=True)
logger = logging.getLogger("eigenshift.command_line")


class TableFormat(str, Enum):
    """How `audit` prints."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class ExportFormat(str, Enum):
    """What `export` writes."""

    merged = "merged"
    lora = "lora"
    patch = "patch"


class ExportCheck(str, Enum):
    """How `export` compares a merged model with what was measured."""

    auto = "auto"
    full = "full"
    files = "files"


PresetOption = Annotated[
    str | None, typer.Option("--preset", help=f"Shipped settings: {', '.join(list_presets())}.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Root URL of the store (overrides the settings).")
]
RequiredStoreOption = Annotated[str, typer.Option("--store", help="Root URL of the store.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting: key.path=value. Repeat.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
AgainstOption = Annotated[str | None, typer.Option("--against", help="Run to compare it with.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Run id; by default the latest.")]


@app.command()
def refresh(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole line: read, study, patch, evaluate, release or hold."""
    settings = _load(preset, config, store, overrides)
    create_home()
    from flows.refresh import run_refresh  # Prefect takes seconds to import: only where needed

    with _telling_failure(as_json):
        outcome = run_refresh(settings)
    if as_json:
        print(json.dumps(outcome.as_contract()))  # noqa: T201 - the contract's output
    else:
        _print_outcome(outcome)
    raise typer.Exit(EXIT_PROMOTED if outcome.status == "promoted" else EXIT_HELD)


@app.command()
def compare(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the interventions and control arms on the same prompts and seeds."""
    settings = _load(preset, config, store, overrides)
    create_home()
    from flows.compare import run_compare

    with _telling_failure(as_json):
        comparison = run_compare(settings)
    _print_result(comparison.as_contract(), comparison.columns, comparison.rows, as_json)
    if not as_json:
        for note in comparison.notes:
            console.print(note, highlight=False, soft_wrap=True)


@app.command()
def tune(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search the number of components and the factor under a fluency budget."""
    settings = _load(preset, config, store, overrides)
    create_home()
    from flows.tune import run_tune

    with _telling_failure(as_json):
        tuning = run_tune(settings)
    _print_result(tuning.as_contract(), tuning.columns, tuning.rows, as_json)
    if not as_json:
        console.print(f"Plot: {tuning.figure}", highlight=False, soft_wrap=True)
        console.print(tuning.advice, highlight=False, soft_wrap=True)


@app.command()
def detect(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find which units and layers detect toxicity, in models of any kind; change nothing."""
    settings = _load_as(DetectionSettings, preset, config, store, overrides)
    create_home()
    from flows.detect import run_detect

    with _telling_failure(as_json):
        detection = run_detect(settings)
    if as_json:
        print(json.dumps(detection.as_contract()))  # noqa: T201
        return
    _print_paper_tables(settings.store, detection.run_id)
    console.print(f"Run {detection.run_id}", highlight=False)


@app.command()
def audit(
    sql: Annotated[str | None, typer.Argument(help="One SELECT over the audit views.")] = None,
    store: RequiredStoreOption = "./.eigenshift",
    table_format: Annotated[
        TableFormat, typer.Option("--format", help="Output format.")
    ] = TableFormat.table,
    show_text: Annotated[
        bool,
        typer.Option("--show-text", help="Show text columns that the query does not name."),
    ] = False,
    question: Annotated[
        str | None, typer.Option("--ask", help="Ask a saved question instead (see --list).")
    ] = None,
    run: RunOption = None,
    against: AgainstOption = None,
    release: Annotated[
        str | None, typer.Option("--release", help="Version; by default the latest.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Version to compare with; by default the previous."),
    ] = None,
    lists_questions: Annotated[
        bool, typer.Option("--list", help="List the saved questions.")
    ] = False,
    export_folder: Annotated[
        Path | None,
        typer.Option(
            "--export", help="Write all views as Parquet and one DuckDB file; --run: of it."
        ),
    ] = None,
) -> None:
    """Ask the store a question in SQL, read-only; without one, open a shell."""
    from eigenshift.questions import Subjects
    from flows.audit_commands import AuditRequest, list_saved, run_audit

    if lists_questions:
        list_saved(console)
        return
    request = AuditRequest(
        store=store,
        sql=sql,
        question=question,
        subjects=Subjects(run=run, against=against, release=release, since=since),
        table_format=table_format.value,
        show_text=show_text,
        export=export_folder,
    )
    run_audit(request, console, err_console)


@app.command()
def runs(
    store: RequiredStoreOption = "./.eigenshift",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most runs to list.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a store, newest first, and which led to the release in force."""
    from flows.audit_commands import print_history

    print_history(store, "run_history", console, limit=limit, model=None, as_json=as_json)


@app.command()
def releases(
    store: RequiredStoreOption = "./.eigenshift",
    model: Annotated[str | None, typer.Option("--model", help="Only of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most releases to list.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List releases and roll-backs, newest first, and what is in force."""
    from flows.audit_commands import print_history

    print_history(store, "release_history", console, limit=limit, model=model, as_json=as_json)


def _print_paper_tables(store: str, run_id: str) -> None:
    """Units against layers, then layer by layer."""
    from flows.audit_commands import print_questions

    print_questions(store, run_id, ("paper_rq1", "paper_rq2"), console)


@app.command()
def report(
    store: RequiredStoreOption = "./.eigenshift",
    run: RunOption = None,
    against: AgainstOption = None,
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Also write the figures as PNG files here.")
    ] = None,
) -> None:
    """Write one self-contained HTML file about a run, or about two side by side."""
    if against is not None:
        if figures is not None:
            raise SettingsError(
                "report: expected no --figures with --against, found it; figures are of one run. "
                "Leave out one of them."
            )
        from eigenshift.comparison_report import write_comparison_report

        pair = write_comparison_report(store, run, against, out)
        console.print(f"Report of run {pair[0]} against {pair[1]}: {out}", soft_wrap=True)
        return
    from eigenshift.html_report import write_html_report

    run_id = write_html_report(store, run, out)
    _print_paper_tables(store, run_id)
    console.print(f"Report of run {run_id}: {out}")
    if figures is not None:
        from eigenshift.figures import write_run_figures

        console.print(f"{len(write_run_figures(store, run_id, figures))} figures: {figures}")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="New or empty folder.")],
    store: RequiredStoreOption = "./.eigenshift",
    run: Annotated[
        str | None, typer.Option("--run", help="Run id; by default that of the release in force.")
    ] = None,
    export_format: Annotated[
        ExportFormat, typer.Option("--format", help="Kind of export.")
    ] = ExportFormat.patch,
    arm: Annotated[
        str, typer.Option("--arm", help="Which patch; of a comparison (--run) any of its arms.")
    ] = "eigenshift",
    check: Annotated[
        ExportCheck,
        typer.Option("--check", help="Merged: load it back (full), or compare files (big models)."),
    ] = ExportCheck.auto,
    untie: Annotated[
        bool, typer.Option("--untie", help="LoRA of a tied head: add the base with an own head.")
    ] = False,
    push: Annotated[
        str | None, typer.Option("--push", help="owner/name on the Hugging Face hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A repository made by --push is public.")
    ] = False,
) -> None:
    """Write a run's patch as a folder other tools load, and push it where asked to."""
    from eigenshift.exporting import Check, ExportOptions, export_patch

    options = ExportOptions(
        arm=arm, unties=untie, check=Check(check.value), push=push, is_public=public
    )
    path = export_patch(store, run, export_format.value, out, options)
    console.print(f"Wrote {export_format.value} export: {path}")
    if push is not None:
        console.print(f"Pushed to {push} ({'public' if public else 'private'} if it was made now)")


@app.command()
def rollback(
    model: Annotated[str, typer.Option("--model", help="Model name as in the releases view.")],
    store: RequiredStoreOption = "./.eigenshift",
    to: Annotated[
        str | None, typer.Option("--to", help="Version to go back to; by default the former one.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the record.")] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Who decides; by default user@host.")
    ] = None,
) -> None:
    """Put an earlier release of a model in force again."""
    from eigenshift.releases import roll_back
    from eigenshift.storage import Store

    release = roll_back(Store(store), model, to, reason=reason, by=by)
    console.print(f"{release.model_id}: {release.reason}; now in force: {release.version}")


@app.command()
def verify(
    store: RequiredStoreOption = "./.eigenshift",
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set damaged objects aside, so that they are made again."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every checksum, schema and lineage link of a store."""
    from eigenshift.repair import repair_store
    from eigenshift.verification import verify_store

    verdict = verify_store(store)
    repaired = repair_store(store, verdict) if repair else []
    if as_json:
        print(json.dumps({**verdict.as_dict(), "repaired": repaired}))  # noqa: T201
    else:
        for line in [*verdict.problems, *repaired]:
            console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
        console.print(verdict.summary, markup=False, highlight=False, soft_wrap=True)
        if repaired:
            console.print("Start the same refresh again: what was set aside is made again.")
        elif verdict.advice:
            console.print(verdict.advice, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_FAILED if verdict.problems else EXIT_PROMOTED)


@app.command()
def gc(
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Finished runs of each command to keep.")
    ],
    store: RequiredStoreOption = "./.eigenshift",
    keep_run: Annotated[
        list[str] | None, typer.Option("--keep-run", help="Keep this run as well. Repeat.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Really remove; without it, only list.")
    ] = False,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="Leave younger loose files alone.")
    ] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts that no kept run or release reaches (a dry run by default)."""
    from eigenshift.retention import collect_garbage

    found = collect_garbage(
        store, keep=keep, keep_runs=keep_run or (), delete=delete, grace_hours=grace_hours
    )
    if as_json:
        print(json.dumps(found.as_dict()))  # noqa: T201
    else:
        for kind, count in found.artifacts.items():
            console.print(f"  {count:6d}  {kind}", highlight=False)
        console.print(found.summary, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_FAILED if found.at_work else EXIT_PROMOTED)


@app.command()
def doctor(
    preset: PresetOption = None,
    config: ConfigOption = None,
    store: StoreOption = None,
    overrides: SetOption = None,
) -> None:
    """Tell what this machine and these settings can and cannot do."""
    from eigenshift.diagnosis import diagnose
    from flows.server_check import check_server

    settings = None if preset is config is None else _load(preset, config, store, overrides)
    findings = [*diagnose(settings), check_server()]
    table = Table("", "what", "found", show_edge=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.is_fine else "[red]no[/]"
        table.add_row(mark, finding.name, escape(finding.detail))
    console.print(table)
    raise typer.Exit(EXIT_PROMOTED if all(finding.is_fine for finding in findings) else EXIT_FAILED)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; every error of ours becomes one clear message."""
    sys.exit(_run(lambda: _start(arguments)))


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


def _load(
    preset: str | None, config: Path | None, store: str | None, overrides: Sequence[str] | None
) -> RefreshSettings:
    return _load_as(RefreshSettings, preset, config, store, overrides)


def _load_as(
    kind: type[AnySettings],
    preset: str | None,
    config: Path | None,
    store: str | None,
    overrides: Sequence[str] | None,
) -> AnySettings:
    given = list(overrides or [])
    if store is not None:
        given.append(f"store={json.dumps(store)}")
    if (preset is None) == (config is None):
        raise typer.BadParameter("give either --preset or --config")
    return load_settings_as(kind, config or find_preset(preset or ""), given)


@contextmanager
def _telling_failure(as_json: bool) -> Iterator[None]:
    """With `--json`, a run that fails ends with its JSON object too."""
    from eigenshift.reporting import FAILED_RUN

    try:
        yield
    except BaseException as error:
        if as_json and hasattr(error, FAILED_RUN):
            print(json.dumps(getattr(error, FAILED_RUN)), flush=True)  # noqa: T201
        raise


def _print_outcome(outcome: Any) -> None:
    from eigenshift.reporting import HEADLINE_COLUMNS, tabulate_headline

    table = Table(*HEADLINE_COLUMNS, title=f"{outcome.model_id}: {outcome.status}")
    for row in tabulate_headline(outcome.evaluations):
        table.add_row(*row)
    console.print(table)
    for check in outcome.checks:
        mark = "[green]passed[/]" if check["is_passed"] else "[red]failed[/]"
        console.print(f"  {mark}  {_describe_check(check)}", highlight=False)
    if outcome.release is not None:
        note = "made" if outcome.is_new_release else "already in force, nothing new to release"
        console.print(f"Release {outcome.release} ({note}), run {outcome.run_id}")
    else:
        console.print(f"No release: held by the gate. Run {outcome.run_id}")
    store = _shorten(outcome.store)
    console.print("Next, try:")
    for line in (
        f'  eigenshift audit --store {store} "{EXAMPLE_QUESTION}"',
        f"  eigenshift report --store {store} --out report.html",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _describe_check(check: Mapping[str, Any]) -> str:
    line = f"{check['name']}: {check['found']}"
    if check["is_passed"]:
        return escape(line)
    missed = f", missed by {check['missed_by']}" if check.get("missed_by") else ""
    return escape(f"{line}; expected {check['expected']}{missed}")


EXAMPLE_QUESTION = (
    "select dataset, layer, site, round(probe_auroc, 3) probe, round(best_neuron_auroc, 3) neuron "
    "from layers where run_id = (select max(run_id) from layers) order by probe desc"
)


def _print_result(
    contract: dict[str, Any], columns: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool
) -> None:
    if as_json:
        print(json.dumps(contract))  # noqa: T201
        return
    print_table(console, columns, rows)


def _print_error(message: str) -> None:
    err_console.print(
        f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True
    )


def _shorten(root: str) -> str:
    path = Path(root.removeprefix("file://"))
    return os.path.relpath(path) if root.startswith("file://") else root
