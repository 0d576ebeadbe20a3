"""The data dictionary: every column of every view with type, unit and meaning.

Made from the schemas alone. It is the page docs/views.md, what the shell completes, and the
comments in an exported database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from eigenshift.audit.views import VIEW_SCHEMAS

_UNITS = (
    (r"_seconds$", "seconds"),
    (r"bytes", "bytes"),
    (r"^(value|low|high)$", "of the metric"),
    (r"^(mean|variance)_(non)?toxic$", "activation"),
    (r"^activation$", "activation"),
    (r"^(cohens_d|effect_size)$", "standard deviations"),
    (r"_angle$", "degrees"),
    (r"logit_gain", "logits"),
    (r"^(nll|kl_)", "nats"),
    (r"correlation", "-1 to 1"),
    (
        r"auroc|probability|share|accuracy|_f1|precision|overlap|frequency|[pq]_value|^factor$|^toxicity$",
        "0 to 1",
    ),
    (r"_index$|^layer$|^rank$|_row$|^step", "index"),
)
"""What a number's name says about its unit; the first that fits. docs/naming.md has the habits."""


@dataclass(frozen=True)
class Entry:
    """One column of one view."""

    view: str
    column: str
    type: str
    unit: str
    meaning: str


def list_entries() -> list[Entry]:
    """All columns, view by view, in their order."""
    entries = []
    with duckdb.connect() as connection:
        for view, schema in VIEW_SCHEMAS.items():
            types = connection.from_arrow(schema.empty_table()).types
            for field, type_ in zip(schema, types, strict=True):
                entries.append(
                    Entry(view, field.name, str(type_), find_unit(field), read_meaning(field))
                )
    return entries


def read_meaning(field: pa.Field) -> str:
    """What the schema says a column means."""
    return str((field.metadata or {}).get(b"meaning", b"").decode())


def find_unit(field: pa.Field) -> str:
    """Unit of a column: that of its schema, or what type and name say."""
    stated = (field.metadata or {}).get(b"unit")
    if stated is not None:
        return str(stated.decode())
    if pa.types.is_boolean(field.type):
        return "true or false"
    if pa.types.is_timestamp(field.type):
        return "UTC"
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
        return "JSON" if read_meaning(field).startswith("JSON") else "text"
    for pattern, unit in _UNITS:
        if re.search(pattern, field.name):
            return unit
    return "count" if pa.types.is_integer(field.type) else "number"
