"""`audit`, its shell, `runs` and `releases`, as they are typed."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from eigenshift.audit import VIEW_NAMES, open_audit
from eigenshift.ledger.releases import roll_back
from flows import command_line
from flows.audit_shell import AuditShell, SqlCompleter, is_complete, open_history
from flows.run_commands import EXAMPLE_QUESTION
from tests.support.small_store import SmallStore, build_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallStore:
    """A store these tests only read."""
    return build_small_store(str(tmp_path_factory.mktemp("store")))


def run(*arguments: str) -> int:
    """Exit code of the command line."""
    with pytest.raises(SystemExit) as leaving:
        command_line.main(list(arguments))
    return int(leaving.value.code or 0)


def test_audit_answers_from_a_pipe(
    small: SmallStore, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without SQL and without a terminal, the question is read from stdin; none is an error."""
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT count(*) AS n FROM samples\n"))
    assert run("audit", "--store", small.url, "--format", "json") == 0
    assert json.loads(capfd.readouterr().out) == [{"n": 30}]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("audit", "--store", small.url) == 2
    assert "expected SQL" in capfd.readouterr().err


def test_saved_questions_are_listed_and_asked(
    small: SmallStore, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their tokens stay hidden; two ways of asking at once are refused."""
    assert run("audit", "--list") == 0
    assert "release_lineage" in capfd.readouterr().out
    base = ("audit", "--store", small.url, "--ask", "damped_components", "--format", "csv")
    assert run(*base) == 0
    assert "kettle" not in capfd.readouterr().out
    assert run(*base, "--show-text") == 0
    assert "kettle" in capfd.readouterr().out
    assert run("audit", "SELECT 1", "--store", small.url, "--ask", "paper_rq1") == 2
    assert "found SQL and --ask" in capfd.readouterr().err


def test_export_writes_every_view(
    small: SmallStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line per view, and a file for each."""
    assert run("audit", "--store", small.url, "--export", str(tmp_path / "out")) == 0
    assert "samples" in capfd.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"audit.duckdb", *(f"{view}.parquet" for view in VIEW_NAMES)}


def test_requests_to_a_remote_store_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """On stderr, so that stdout stays the answer."""
    remote = build_small_store("memory://audit-commands")
    sql = "SELECT layer FROM layers ORDER BY layer"
    assert run("audit", sql, "--store", remote.url, "--format", "csv") == 0
    captured = capfd.readouterr()
    assert captured.out == '"layer"\n0\n1\n'
    assert "requests to storage" in captured.err


def test_runs_and_releases_say_what_is_in_force(
    small: SmallStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a roll-back no run is in force, and the roll-back is on top."""
    assert run("runs", "--store", small.url) == 0
    assert f"\n*  {small.run_id}  refresh" in capfd.readouterr().out
    copy = small.copy_to(tmp_path / "store")
    roll_back(copy.artifacts.store, copy.record.model_id, None)
    copy.add_run("compare", "finished")
    assert run("runs", "--store", copy.url, "--json", "--limit", "1") == 0
    (newest,) = json.loads(capfd.readouterr().out)
    assert (newest["command"], newest["is_in_force"]) == ("compare", False)
    assert run("releases", "--store", copy.url) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[0] == f"Model {copy.record.model_id}"
    (place,) = [place for place, line in enumerate(told) if "rollback" in line]
    assert "unpatched model" in told[place]
    assert told[place].startswith("*  ")
    assert told[place + 1].startswith("   2")
    assert run("releases", "--store", copy.url, "--model", "another", "--json") == 0
    assert json.loads(capfd.readouterr().out) == []


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (("SELECT 1", "--run", "x"), "no --run with SQL"),
        (("SELECT 1", "--release", "x", "--since", "y"), "no --release and --since with SQL"),
        (("--export", "out", "--against", "x"), "no --against with --export"),
        (("--export", "out", "--run", "x"), "expected run 'x'"),
    ],
)
def test_a_subject_that_would_be_ignored_is_refused(
    small: SmallStore,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    unused: str,
) -> None:
    """SQL says itself what it is about; an export is of a run that is there."""
    monkeypatch.chdir(tmp_path)
    assert run("audit", "--store", small.url, *words) == 2
    assert unused in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_figures_of_two_runs_are_refused(
    small: SmallStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`--figures` is of one run."""
    words = ("--against", small.run_id, "--figures", str(tmp_path / "figures"))
    assert run("report", "--store", small.url, "--out", str(tmp_path / "a.html"), *words) == 2
    assert "no --figures with --against" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_example_question_has_rows_of_the_latest_run(small: SmallStore) -> None:
    """With the dataset, and no row of an earlier run."""
    copy_of_rows = "SELECT count(*) AS n FROM layers"
    with open_audit(small.url) as session:
        answer = session.query(EXAMPLE_QUESTION)
        (expected,) = session.query(copy_of_rows).to_pylist()
    assert answer.column_names[0] == "dataset"
    assert answer.num_rows == expected["n"] > 0


@pytest.mark.parametrize(
    ("name", "value"), [("EIGENSHIFT_LOG_FORMAT", "xml"), ("EIGENSHIFT_LOG_LEVEL", "loud")]
)
def test_a_wrong_setting_of_the_log_is_an_error_of_the_input(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    """Exit code 2 with a message, for every command."""
    monkeypatch.setenv(name, value)
    assert run("audit", "--list") == 2
    assert capfd.readouterr().err.startswith(f"error: {name}: expected")


def complete(text: str) -> list[str]:
    """What the shell offers after a text."""
    offered = SqlCompleter().get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in offered]


def test_shell_completes_views_columns_and_commands() -> None:
    """Views after FROM, columns of the views named, arguments of commands."""
    assert complete("select * from lay") == ["layers", "layer_transfers"]
    assert complete("select * from neurons where mean_n") == ["mean_nontoxic"]
    assert "SELECT" in complete("sel")
    assert complete(".col") == [".columns"]
    assert complete(".ask release_l") == ["release_lineage"]
    assert complete(".text ") == ["on", "off"]


def test_shell_waits_for_a_semicolon() -> None:
    """A question may have several lines; a command has one."""
    assert not is_complete("SELECT 1")
    assert is_complete("SELECT 1;")
    assert is_complete(".views")
    assert is_complete(" ")


def type_into_shell(small: SmallStore, lines: str, history: Any = None) -> str:
    """What the shell prints."""
    output = io.StringIO()
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text(lines)
        with open_audit(small.url) as session:
            shell = AuditShell(session, small.url, Console(file=output, width=120))
            shell.run(history or InMemoryHistory())
    return output.getvalue()


def test_shell_answers_and_goes_on_after_errors(small: SmallStore, tmp_path: Path) -> None:
    """A question over two lines, a wrong one, a hostile one, a saved one; Ctrl-D at the end."""
    out = tmp_path / "answer.parquet"
    printed = type_into_shell(
        small,
        "SELECT count(*) AS n_samples\nFROM samples;\n"
        "SELECT nothing FROM samples;\n"
        "COPY runs TO 'x';\n"
        ".nonsense\n"
        ".columns layers\n"
        ".columns lairs\n"
        ".format csv\n"
        ".ask why_held\n"
        f".format parquet {out}\n"
        "SELECT 1 AS one;\n"
        ".format table\n"
        ".text on\n"
        "SELECT * FROM components LIMIT 1;\n"
        "\x04",
    )
    for part in (
        "n_samples",
        "30",
        "error: audit query refused",
        "expected a SELECT, found COPY",
        "found '.nonsense'",
        "AUROC of a linear probe",
        "expected one of runs",
        '"status","check_name"',
        f"1 rows: {out}",
        "kettle",
    ):
        assert part in printed.replace("\n", " ") or part in printed, part
    assert pq.read_table(out).to_pylist() == [{"one": 1}]


def test_shell_goes_on_after_a_file_that_cannot_be_written_and_after_ctrl_c(
    small: SmallStore, tmp_path: Path
) -> None:
    """Neither ends it, and the next question is answered."""
    output = io.StringIO()
    with open_audit(small.url) as session:
        shell = AuditShell(session, small.url, Console(file=output, width=500))
        shell.answer(f".format parquet {tmp_path}/no/such/folder")
        shell.answer("SELECT 1;")
        shell.answer(".format csv")
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        shell.answer("SELECT sum(hash(a.range, b.range)) FROM range(1000000) a, range(1000000) b;")
        shell.answer("SELECT 2 AS two;")
    written, stopped, answer = output.getvalue().split("\n", 2)
    assert "expected to write a file, found: No such file" in written
    assert stopped == "stopped"
    assert answer == '"two"\n2\n'


def test_shell_keeps_its_history_for_its_user_only(
    small: SmallStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across sessions, in a file nobody else reads; where it cannot be, in memory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    history = open_history()
    assert isinstance(history, FileHistory)
    type_into_shell(small, "SELECT 42;\n.quit\n", history)
    path = tmp_path / "state" / "eigenshift" / "audit_history"
    assert path.stat().st_mode & 0o077 == 0
    assert ".quit" in list(open_history().load_history_strings())
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    assert isinstance(open_history(), InMemoryHistory)
