"""What `audit`, `runs` and `releases` do: ask the store, print the answer.

Answers go to stdout; what a remote store was asked for goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from eigenshift.audit import AuditSession, encode_table, export_views, open_audit
from eigenshift.audit.questions import Subjects, find_question, list_questions
from eigenshift.base.errors import SettingsError
from eigenshift.reporting.history_tables import IN_FORCE, tabulate_releases, tabulate_runs
from eigenshift.store.storage import Store
from flows.terminal_tables import print_answer, print_fitting, print_table


@dataclass(frozen=True)
class AuditRequest:
    """What was asked on the command line.

    Attributes:
        store: Root URL of the store.
        sql: A question; None where none was given.
        question: Name of a saved question.
        subjects: What a saved question is about.
        table_format: table, csv, json or parquet.
        show_text: Show text the question does not name.
        export: Folder to write all views into instead.
    """

    store: str
    sql: str | None = None
    question: str | None = None
    subjects: Subjects = field(default_factory=Subjects)
    table_format: str = "table"
    show_text: bool = False
    export: Path | None = None


def run_audit(request: AuditRequest, console: Console, err_console: Console) -> None:
    """Export, answer one question, or open the shell.

    Raises:
        SettingsError: The place holds no store, more than one of these was asked for, nothing where
            nobody can be asked, or a subject that the answer would not be about.
    """
    given = [
        name
        for name, value in (
            ("SQL", request.sql),
            ("--ask", request.question),
            ("--export", request.export),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise SettingsError(
            f"audit: expected one of SQL, --ask and --export, found {' and '.join(given)}."
        )
    _refuse_unused(request)
    if request.export is not None:
        rows = export_views(
            request.store,
            request.export,
            run_id=request.subjects.run,
            show_text=request.show_text,
        )
        print_table(console, ["view", "rows"], rows.items())
        console.print(f"Wrote {request.export}", highlight=False, soft_wrap=True)
        return
    with open_audit(request.store) as session:
        session.require_holdings()
        sql = request.sql
        if not given:
            if sys.stdin.isatty():
                _open_shell(session, request, console)
                return
            sql = _read_question()
        _write(_ask(session, request, sql), request.table_format, console)
        _report_traffic(session, err_console)


def _refuse_unused(request: AuditRequest) -> None:
    """SQL says itself what it is about; an export is of one run at most."""
    if request.question is not None:
        return
    taken = () if request.export is None else ("run",)
    unused = [
        f"--{name}"
        for name, value in asdict(request.subjects).items()
        if value is not None and name not in taken
    ]
    if unused:
        what = "SQL" if request.export is None else "--export"
        raise SettingsError(
            f"audit: expected no {' and '.join(unused)} with {what}, found it, which would be "
            "ignored. Use it with --ask, or name the run in the SQL: WHERE run_id = '...'."
        )


def list_saved(console: Console) -> None:
    """Print the saved questions."""
    rows = (
        [question.name, question.answers, ", ".join(sorted(question.subjects)) or "all"]
        for question in list_questions().values()
    )
    print_table(console, ["question", "answers", "about"], rows)


def print_history(
    store: str, question: str, console: Console, *, limit: int, model: str | None, as_json: bool
) -> None:
    """Print the newest rows of a saved question about the whole store.

    Args:
        store: Root URL of the store.
        question: Its name.
        console: Where to print.
        limit: Most rows.
        model: Only rows of this model.
        as_json: As one JSON array.
    """
    with open_audit(store) as session:
        answer = session.query(find_question(question).template)
    if model is not None:
        is_wanted = [name == model for name in answer["model_id"].to_pylist()]
        answer = answer.filter(pa.array(is_wanted, pa.bool_()))
    answer = answer.slice(0, limit)
    if as_json:
        _write(answer, "json", console)
        return
    rows = answer.to_pylist()
    left_out: list[str] = []
    if question == "run_history":
        left_out += print_fitting(console, tabulate_runs(rows))
        note = f"{IN_FORCE} led to the release in force."
    else:
        for model_id, columns in tabulate_releases(rows).items():
            console.print(f"Model {model_id}", markup=False, highlight=False, soft_wrap=True)
            left_out += print_fitting(console, columns)
        note = f"{IN_FORCE} in force."
    if left_out:
        names = ", ".join(dict.fromkeys(left_out))
        note += f" Not shown in {console.width} columns: {names} (a wider window, or --json)."
    console.print(note, markup=False, highlight=False, soft_wrap=True)


def print_questions(store: str, run_id: str, names: Sequence[str], console: Console) -> None:
    """Print the answers to saved questions about one run."""
    with open_audit(store) as session:
        for name in names:
            print_answer(console, session.query(find_question(name).fill({"run": run_id})))


def _ask(session: AuditSession, request: AuditRequest, sql: str | None) -> pa.Table:
    if request.question is None:
        return session.query(sql or "", request.show_text)
    question = find_question(request.question)
    filled = question.ask_about(Store(request.store), request.subjects)
    return session.query(filled, request.show_text, hide_named=True)


def _read_question() -> str:
    sql = sys.stdin.read().strip()
    if not sql:
        raise SettingsError(
            "audit: expected SQL, --ask with the name of a saved question, or a terminal for the "
            "shell, found none. See `eigenshift audit --list`."
        )
    return sql


def _open_shell(session: AuditSession, request: AuditRequest, console: Console) -> None:
    from flows.audit_shell import AuditShell

    AuditShell(
        session,
        request.store,
        console,
        table_format="table" if request.table_format == "parquet" else request.table_format,
        show_text=request.show_text,
    ).run()


def _write(answer: pa.Table, table_format: str, console: Console) -> None:
    if table_format == "table":
        print_answer(console, answer)
    else:
        sys.stdout.buffer.write(encode_table(answer, table_format))
        sys.stdout.flush()


def _report_traffic(session: AuditSession, err_console: Console) -> None:
    if session.is_remote:
        traffic = session.traffic
        err_console.print(
            f"{traffic.requests:,} requests to storage, {traffic.bytes_read:,} bytes read",
            highlight=False,
        )


def print_paper_tables(store: str, run_id: str, console: Console) -> None:
    """Units against layers, then layer by layer."""
    print_questions(store, run_id, ("paper_rq1", "paper_rq2"), console)
