"""Every number of a store, open to SQL: read-only views in DuckDB over its artifacts.

Reads manifests, run records and releases; the Parquet files behind a view are read where they
lie, remote ones by ranges. Writes nothing into the store. Pages and pictures of what is found here
are `reporting/`'s. What has no manifest is invisible here; what is damaged is `upkeep/`'s to find.

    index.py           manifests, runs and releases as tables, kept in a cache
    record_schemas.py  columns of views made from records
    views.py           the views: names, columns, SQL; adding a table is one entry
    files.py           names of files, with run and artifact in the path
    connections.py     a connection with the views a question names, closed to all else
    statements.py      one read-only statement, and what it names
    limits.py          time, memory, result size, requests
    questions.py       saved questions (`sql/`), filled in
    sessions.py        ask, answer, hide text
    encoding.py        answers as CSV, JSON, Parquet
    exporting.py       all views as Parquet and one DuckDB file
    dictionary.py      every column with type, unit and meaning
"""

from eigenshift.audit.encoding import FORMATS, encode_table
from eigenshift.audit.exporting import export_views
from eigenshift.audit.limits import AuditLimits
from eigenshift.audit.sessions import HIDDEN_TEXT, AuditSession, connect, open_audit
from eigenshift.audit.statements import find_named_columns
from eigenshift.audit.views import VIEW_NAMES, VIEW_SCHEMAS

__all__ = [
    "FORMATS",
    "HIDDEN_TEXT",
    "VIEW_NAMES",
    "VIEW_SCHEMAS",
    "AuditLimits",
    "AuditSession",
    "connect",
    "encode_table",
    "export_views",
    "find_named_columns",
    "open_audit",
]
