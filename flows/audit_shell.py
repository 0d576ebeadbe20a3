"""The shell of `eigenshift audit`: questions in SQL, with history and completion.

A line that begins with a dot is for the shell, all else is SQL up to a semicolon. Questions are
kept in a history file of the user's, which may hold whatever they typed; answers are not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer
from rich.console import Console

from eigenshift.audit import FORMATS, VIEW_SCHEMAS, AuditSession, encode_table
from eigenshift.audit.dictionary import list_entries
from eigenshift.audit.questions import Subjects, find_question, list_questions
from eigenshift.base.errors import AuditError, EigenShiftError
from eigenshift.store.storage import Store
from flows.terminal_tables import print_answer, print_table

HELP = (
    (".views", "the views"),
    (".columns VIEW", "its columns, with units and meanings"),
    (".questions", "the saved questions"),
    (".ask NAME [RUN or RELEASE]", "ask a saved question"),
    (".format table|csv|json|parquet FILE", "how answers are shown; parquet goes into a file"),
    (".text on|off", "show offensive text that a question does not name"),
    (".quit", "leave; so does Ctrl-D"),
)
COMMANDS = (".help", *(line.split()[0] for line, _ in HELP))
KEYWORDS = tuple(
    "SELECT FROM WHERE GROUP BY ORDER LIMIT JOIN LEFT USING AS AND OR NOT IN IS NULL WITH UNION "  # noqa: SIM905
    "DISTINCT HAVING CASE WHEN THEN ELSE END DESC BETWEEN LIKE DESCRIBE SUMMARIZE count avg min "
    "max sum round".split()
)


class SqlCompleter(Completer):
    """Names of views, columns of the views a question names, keywords; after a dot, commands."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """What could stand here."""
        word = document.get_word_before_cursor(WORD=False)
        line = document.current_line_before_cursor.lstrip()
        if line.startswith("."):
            command, _, rest = line.partition(" ")
            typed = line if not rest and " " not in line else rest
            return self._offer(typed, self._list_arguments(command) if " " in line else COMMANDS)
        before = document.text_before_cursor[: -len(word) or None]
        named = [name for name in VIEW_SCHEMAS if name in document.text.lower().split()]
        columns = [column for name in named for column in VIEW_SCHEMAS[name].names]
        if before.rstrip().lower().endswith((" from", " join", "from", "describe", "summarize")):
            return self._offer(word, VIEW_SCHEMAS)
        return self._offer(word, [*dict.fromkeys(columns), *VIEW_SCHEMAS, *KEYWORDS])

    @staticmethod
    def _list_arguments(command: str) -> Iterable[str]:
        return {
            ".columns": tuple(VIEW_SCHEMAS),
            ".ask": tuple(list_questions()),
            ".format": ("table", *FORMATS),
            ".text": ("on", "off"),
        }.get(command, ())

    @staticmethod
    def _offer(typed: str, names: Iterable[str]) -> Iterable[Completion]:
        for name in names:
            if name.lower().startswith(typed.lower()):
                yield Completion(name, start_position=-len(typed))


class AuditShell:
    """Asks, answers and remembers how to show answers."""

    def __init__(
        self,
        session: AuditSession,
        store_url: str,
        console: Console,
        *,
        table_format: str = "table",
        show_text: bool = False,
    ) -> None:
        self._session = session
        self._store_url = store_url
        self._console = console
        self._format = table_format
        self._file: Path | None = None
        self._show_text = show_text

    def run(self, history: History | None = None) -> None:
        """Read lines until the end."""
        prompt: PromptSession[str] = PromptSession(
            "audit> ",
            completer=SqlCompleter(),
            history=history or open_history(),
            lexer=PygmentsLexer(SqlLexer),
            multiline=Condition(lambda: not is_complete(prompt.default_buffer.text)),
            prompt_continuation="  ...> ",
        )
        self._console.print("Questions in SQL end with a semicolon; .help for more.")
        while True:
            try:
                line = prompt.prompt().strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line in (".quit", ".exit"):
                return
            self.answer(line)

    def answer(self, line: str) -> None:
        """Do what one line says; an error is a message, not the end, nor is Ctrl-C."""
        try:
            if line.startswith("."):
                self._obey(line)
            elif line.strip("; \n"):
                self._show(self._session.query(line, show_text=self._show_text))
        except KeyboardInterrupt:
            self._console.print("stopped")
        except EigenShiftError as error:
            self._console.print(f"error: {error}", style="red", markup=False, highlight=False)

    def _obey(self, line: str) -> None:
        command, *words = line.split()
        actions: dict[str, Callable[..., None]] = {
            ".help": lambda: print_table(self._console, ["", ""], HELP),
            ".views": lambda: print_table(
                self._console, ["view"], ([name] for name in VIEW_SCHEMAS)
            ),
            ".columns": self._show_columns,
            ".questions": self._list_questions,
            ".ask": self._ask,
            ".format": self._choose_format,
            ".text": self._choose_text,
        }
        action = actions.get(command)
        try:
            if action is None:
                raise TypeError
            action(*words)
        except TypeError as error:
            raise AuditError(f"shell: expected one of .help's commands, found {line!r}.") from error

    def _show_columns(self, view: str) -> None:
        entries = [entry for entry in list_entries() if entry.view == view]
        if not entries:
            raise AuditError(
                f".columns: expected one of {', '.join(VIEW_SCHEMAS)}, found {view!r}."
            )
        rows = ([entry.column, entry.type, entry.unit, entry.meaning] for entry in entries)
        print_table(self._console, ["column", "type", "unit", "meaning"], rows)

    def _list_questions(self) -> None:
        rows = ([question.name, question.answers] for question in list_questions().values())
        print_table(self._console, ["question", "answers"], rows)

    def _ask(self, name: str, subject: str | None = None) -> None:
        question = find_question(name)
        about_run = "run" in question.subjects
        subjects = Subjects(
            run=subject if about_run else None, release=None if about_run else subject
        )
        sql = question.ask_about(Store(self._store_url), subjects)
        self._show(self._session.query(sql, self._show_text, hide_named=True))

    def _choose_format(self, name: str, file: str | None = None) -> None:
        if name not in ("table", *FORMATS) or (name == "parquet") != (file is not None):
            raise AuditError(
                ".format: expected table, csv, json, or parquet and a file, found "
                f"{name} {file or ''}."
            )
        self._format, self._file = name, None if file is None else Path(file)

    def _choose_text(self, state: str) -> None:
        if state not in ("on", "off"):
            raise AuditError(f".text: expected on or off, found {state!r}.")
        self._show_text = state == "on"

    def _show(self, answer: pa.Table) -> None:
        if self._format == "table":
            print_answer(self._console, answer, ".text on")
            return
        data = encode_table(answer, self._format)
        if self._file is not None:
            try:
                self._file.write_bytes(data)
            except OSError as error:
                raise AuditError(
                    f"{self._file}: expected to write a file, found: {error.strerror or error}. "
                    "Choose another with .format parquet FILE."
                ) from error
            self._console.print(f"{answer.num_rows} rows: {self._file}", markup=False)
        else:
            self._console.print(
                data.decode(), end="", markup=False, highlight=False, soft_wrap=True
            )


def is_complete(text: str) -> bool:
    """Whether a line is to be answered when Enter is pressed."""
    text = text.strip()
    return not text or text.startswith(".") or text.endswith(";")


def open_history() -> History:
    """The user's history file, readable by them alone; none where it cannot be kept."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = home / "eigenshift" / "audit_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError as error:
        sys.stderr.write(f"{path}: the history is not kept ({error.strerror}).\n")
        return InMemoryHistory()
    return FileHistory(str(path))
