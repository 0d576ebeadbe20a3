"""What a question in SQL is, before it is asked: one read-only statement, and what it names.

Works on DuckDB's own parser and tokens, so a comment, a string or an odd spelling cannot hide a
statement. What may be reached at all is decided by the connection (`connections.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

import duckdb

from eigenshift.audit.views import VIEW_NAMES
from eigenshift.base import schemas
from eigenshift.base.errors import QuestionError

_ALL_VIEWS_WORDS = frozenset({"show", "describe", "information_schema"})
_CATALOGUE_PREFIXES = ("duckdb_", "pragma_", "sqlite_")
_CHANGING_WORDS = ("insert", "update", "delete", "merge")
_SETTING = re.compile(r"\b(?:SET|PRAGMA) (?:GLOBAL |SESSION )?\w+ ?=")
_SETTING_CLAUSE = re.compile(r",? or (?:SET|PRAGMA) \w+ ?= ?[^.\s]+[^.]*")


def check_statement(sql: str) -> None:
    """Refuse everything but one read-only statement.

    Raises:
        QuestionError: What was found instead.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise QuestionError(f"audit query refused: {explain(error)}") from error
    if len(statements) != 1:
        raise QuestionError(
            f"audit query: expected one statement, found {len(statements)}. Ask one question at a "
            "time."
        )
    kind = statements[0].type
    if kind == duckdb.StatementType.EXPLAIN:
        explained = re.sub(r"(?is)^\s*explain\s+(analyze\s+)?", "", sql, count=1)
        if explained == sql:
            raise QuestionError(
                "audit query: expected EXPLAIN directly before a SELECT, found another form."
            )
        check_statement(explained)
    elif kind != duckdb.StatementType.SELECT:
        raise QuestionError(
            f"audit query: expected a SELECT, found {kind.name}. The store is read-only here: only "
            "SELECT, DESCRIBE, SUMMARIZE, SHOW and EXPLAIN are answered. Export results with "
            "--format."
        )
    words = [word.lower() for word, _ in _split_words(sql)]
    for before, word in itertools.pairwise(words):
        if before == "(" and word in _CHANGING_WORDS:
            raise QuestionError(
                f"audit query: expected a SELECT that only reads, found {word.upper()} inside it. "
                "The store is read-only here."
            )


def find_named_columns(sql: str) -> frozenset[str]:
    """Text columns the SQL itself names.

    Strings, comments, types (`::text`) and new names (`AS text`) do not count.
    """
    named, before = set(), ""
    for word, is_name in _split_words(sql):
        name = word[1:-1].replace('""', '"') if word.startswith('"') else word
        if is_name and before not in ("as", "::"):
            named.add(name.lower())
        before = word.lower()
    return schemas.TEXT_COLUMNS & named


def find_named_views(sql: str) -> tuple[str, ...]:
    """Views whose names occur in the SQL; all for statements about the catalogue itself.

    A name counts wherever it stands, also in a string, which `query()` may run.
    """
    spoken = [word.lower() for word, _ in _split_words(sql)]
    if spoken[:1] == ["desc"] or any(
        word in _ALL_VIEWS_WORDS or word.startswith(_CATALOGUE_PREFIXES) for word in spoken
    ):
        return VIEW_NAMES
    words = {word.lower() for word in re.findall(r"\w+", sql)}
    return tuple(name for name in VIEW_NAMES if name in words)


def explain(error: BaseException) -> str:
    """DuckDB's message, with what to do where it is one of our own limits."""
    message = _leave_out_settings(str(error).strip())
    if isinstance(error, duckdb.PermissionException):
        return f"{message}. Only the store's own artifacts can be read here."
    if isinstance(error, duckdb.CatalogException) and "Table with name" in message:
        return f"{message}\nViews: {', '.join(VIEW_NAMES)}."
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"{message}\nFilter or aggregate earlier."
    return message


def _leave_out_settings(message: str) -> str:
    """A message without advice to change settings, which are locked here."""
    lines = [_leave_out_advice(line) for line in message.splitlines()]
    if lines == message.splitlines():
        return message
    return "\n".join([*filter(None, lines), "Settings are locked here: change the question."])


def _leave_out_advice(line: str) -> str:
    """A line without the clauses and sentences that name a setting; the query's own words stay."""
    if line.startswith("LINE ") or not _SETTING.search(line):
        return line
    sentences = re.split(r"(?<=[.!]) +", _SETTING_CLAUSE.sub("", line))
    return " ".join(sentence for sentence in sentences if not _SETTING.search(sentence))


def quote(text: str) -> str:
    """A string constant."""
    return "'" + text.replace("'", "''") + "'"


def quote_list(texts: Iterable[str]) -> str:
    """A constant list of strings."""
    return "[" + ", ".join(quote(text) for text in texts) + "]::VARCHAR[]"


def _split_words(sql: str) -> list[tuple[str, bool]]:
    """Tokens of the SQL and whether each can be a name; comments and string constants left out."""
    data = sql.encode()
    tokens = duckdb.tokenize(sql)
    ends = [offset for offset, _ in tokens[1:]] + [len(data)]
    words = []
    for (start, kind), end in zip(tokens, ends, strict=True):
        word = data[start:end].decode(errors="replace").strip()
        if kind in (duckdb.token_type.identifier, duckdb.token_type.keyword):
            words.append((word, True))
        elif kind == duckdb.token_type.operator:
            words.append((word, False))
    return words
