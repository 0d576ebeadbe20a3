"""The components a judged patch consists of, as a table for people.

Reads a run's record and artifacts. Tokens are shown only where asked for; contexts never. Showing
it in Prefect's UI is `flows/publication.py`'s, with charts and clicks `html_report.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eigenshift.base.arms import SINGULAR_ARMS
from eigenshift.ledger.runs import RunRecord
from eigenshift.stages import tables
from eigenshift.stages.tables import Table
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference

SINGULAR_COLUMNS = ("sigma", "effect_size", "auroc", "logit_gain", "q_value")
FISHER_COLUMNS = ("step", "benefit", "benefit_low", "benefit_high", "cost", "inclusion_frequency")
TOKEN_COLUMNS = ("tokens_up", "tokens_down")


@dataclass(frozen=True)
class ComponentTable:
    """Components as text, and what they are to the judged patch."""

    rows: list[dict[str, str]]
    description: str


def tabulate_components(
    artifacts: ArtifactStore, record: RunRecord, max_rows: int, *, show_text: bool
) -> ComponentTable | None:
    """What the judged patch consists of; of a patch without components, the likeliest ones.

    Args:
        artifacts: Of the run's store.
        record: Of a refresh.
        max_rows: Only the first this many.
        show_text: Whether the tokens they raise and lower are shown; they may be offensive.

    Returns:
        None where the run did not come to its components.
    """
    made = {(use.kind, use.label): use.fingerprint for use in record.artifacts}
    read: dict[str, str] = {}
    if (patch := made.get(("patch", record.judged))) is not None:
        manifest = artifacts.open(ArtifactReference(kind="patch", fingerprint=patch)).manifest
        read = {item.kind: item.fingerprint for item in manifest.inputs}
    if (fisher := read.get("fisher_components")) is not None:
        found = _read(artifacts, "fisher_components", fisher, tables.FISHER_COMPONENTS)
        title = f"Fisher components of the patch {record.judged}, those that bring most first"
        names: tuple[str, ...] = FISHER_COLUMNS
    elif (scored := made.get(("components", None))) is not None:
        found = sorted(
            _read(artifacts, "components", scored, tables.COMPONENTS), key=lambda row: row["rank"]
        )
        names = SINGULAR_COLUMNS
        if read and record.judged in SINGULAR_ARMS:
            found = [row for row in found if row["is_selected"]]
            title, names = "Components damped, most toxic first", (*SINGULAR_COLUMNS, "factor")
        elif read:
            title = (
                "Singular components of the head, most toxic first; the patch "
                f"{record.judged} is not made of these"
            )
        else:
            title = "Singular components of the head, most toxic first; no patch was built"
    else:
        return None
    notes = [f"the first {max_rows} of {len(found)}"] if len(found) > max_rows else []
    notes += [] if show_text else ["their tokens are hidden (execution.show_text)"]
    return ComponentTable(
        _write_rows(found[:max_rows], names, show_text=show_text), "; ".join([title, *notes])
    )


def _read(
    artifacts: ArtifactStore, kind: str, fingerprint: str, table: Table
) -> list[dict[str, Any]]:
    artifact = artifacts.open(ArtifactReference(kind=kind, fingerprint=fingerprint))
    rows: list[dict[str, Any]] = artifact.read_table(table.file).to_pylist()
    return rows


def _write_rows(
    rows: Iterable[Mapping[str, Any]], names: tuple[str, ...], *, show_text: bool
) -> list[dict[str, str]]:
    return [
        {"component": str(row["component_index"])}
        | ({"module": row["module"]} if "module" in row else {})
        | {name: "-" if row[name] is None else f"{row[name]:.3g}" for name in names}
        | ({name: " ".join(row[name] or []) for name in TOKEN_COLUMNS} if show_text else {})
        for row in rows
    ]
