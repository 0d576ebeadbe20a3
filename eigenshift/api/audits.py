"""Questions in SQL to the store of a run, answered as tables that a notebook shows.

What may be asked, and what is hidden, is `audit/`'s.
"""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Self

from eigenshift.api.representations import Panel, Shown
from eigenshift.api.result_tables import ResultTable
from eigenshift.audit import VIEW_NAMES
from eigenshift.audit import open_audit as open_session
from eigenshift.audit.sessions import AuditSession


class Audit(Shown):
    """A store that can be asked. A context manager.

    Args:
        store: Its root, a path or URL.
        session: Open on it.
    """

    def __init__(self, store: str, session: AuditSession) -> None:
        self.store = store
        self._session = session

    def ask(self, sql: str, *, show_text: bool = False) -> ResultTable:
        """Answer one SELECT (or DESCRIBE, SUMMARIZE, SHOW, EXPLAIN).

        Args:
            sql: Over the views (docs/views.md).
            show_text: Show texts, which may be offensive, even where the SQL does not name their
                columns.

        Raises:
            AuditError: It is not one read-only statement, is refused, or exceeds a limit.
        """
        found = self._session.query(sql, show_text)
        return ResultTable(found, f"{len(found)} rows", show_text=True)

    def close(self) -> None:
        """Close the connection kept from the last question."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self) -> Panel:
        """What can be asked about."""
        return Panel(f"audit of {Path(self.store).name}", notes=["views: " + ", ".join(VIEW_NAMES)])


def open_audit(store: str | Path) -> Audit:
    """Open a run's store for questions in SQL.

    Args:
        store: Its root: a path or URL.

    Raises:
        SettingsError: There is no store.
    """
    session = open_session(str(store))
    session.require_holdings()
    return Audit(str(store), session)
