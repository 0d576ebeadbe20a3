"""Commands about a store: ask it, report, export, roll back, verify, clean up."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from eigenshift.base.errors import SettingsError
from eigenshift.settings import ExportCheck, ExportFormat, ExportTarget
from flows.options import (
    EXIT_FAILED,
    EXIT_PROMOTED,
    AgainstOption,
    JsonOption,
    RequiredStoreOption,
    RunOption,
    console,
    err_console,
)

app = typer.Typer()


class TableFormat(str, Enum):
    """How `audit` prints."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def complete_question(typed: str) -> list[str]:
    """Saved questions that a shell offers after `--ask`."""
    from eigenshift.audit.questions import list_questions

    return [name for name in list_questions() if name.startswith(typed)]


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
        str | None,
        typer.Option(
            "--ask",
            help="Ask a saved question instead (see --list).",
            autocompletion=complete_question,
        ),
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
    from eigenshift.audit.questions import Subjects
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
        from eigenshift.reporting.comparison_report import write_comparison_report

        pair = write_comparison_report(store, run, against, out)
        console.print(f"Report of run {pair[0]} against {pair[1]}: {out}", soft_wrap=True)
        return
    from eigenshift.reporting.html_report import write_html_report
    from flows.audit_commands import print_paper_tables

    run_id = write_html_report(store, run, out)
    print_paper_tables(store, run_id, console)
    console.print(f"Report of run {run_id}: {out}")
    if figures is not None:
        from eigenshift.reporting.figures import write_run_figures

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
        str | None,
        typer.Option("--arm", help="Which patch; by default the one that was judged."),
    ] = None,
    check: Annotated[
        ExportCheck,
        typer.Option("--check", help="Merged: load it back (full), or compare files (big models)."),
    ] = ExportCheck.auto,
    untie: Annotated[
        bool, typer.Option("--untie", help="LoRA of a tied head: add the base with an own head.")
    ] = False,
    target: Annotated[
        list[ExportTarget] | None,
        typer.Option(
            "--target", help="Refuse a merged model or a LoRA that does not arrive in this tool."
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="owner/name on the Hugging Face hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A repository made by --push is public.")
    ] = False,
) -> None:
    """Write a run's patch as a folder other tools load, and push it where asked to."""
    from eigenshift.exporting import ExportOptions, export_patch

    options = ExportOptions(
        arm=arm,
        unties=untie,
        check=check,
        targets=tuple(target or ()),
        push=push,
        is_public=public,
    )
    path = export_patch(store, run, export_format.value, out, options=options)
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
    from eigenshift.ledger.releases import roll_back
    from eigenshift.store.storage import Store

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
    from eigenshift.upkeep.repair import repair_store
    from eigenshift.upkeep.verification import verify_store

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
    from eigenshift.upkeep.retention import collect_garbage

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
