"""Where a run's numbers came from: its artifacts as a picture, its sources, its patches.

Reads a run through the audit views only. Boxes and lines are drawn by `charts/lineage_pictures.py`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from eigenshift.audit import AuditSession
from eigenshift.audit.statements import quote
from eigenshift.charts.lineage_pictures import Box, draw_lineage, rank_boxes
from eigenshift.ledger.runs import RunRecord
from eigenshift.reporting.pages import DASH, DrawnChart, ask, show_size

OUTSIDE = {
    "source": "source files",
    "weights": "model files",
    "classifier": "classifier files",
    "lexicon": "word list",
    "benchmark_task": "benchmark tasks",
    "cases": "functional cases",
}
"""Kinds of inputs that no stage made, in words."""
GATE = "gate"
JUDGED = (
    *("evaluation", "token_shifts", "control_draws", "confirmation", "benchmarks"),
    "reload_check",
)
"""Kinds of artifacts that the gate goes by."""
N_DIGITS = 16
"""Of a digest that are shown."""
COLUMNS = ("what", "made from", "artifacts", "rows", "size", "found ready")
_Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Group:
    """Artifacts that the picture shows as one box."""

    kind: str
    is_patched: bool
    depth: int | None = None


def describe_lineage(session: AuditSession, record: RunRecord) -> dict[str, Any]:
    """The picture, sources, classifiers, patches and number of artifacts of a run."""
    run = quote(record.run_id)
    used = ask(
        session,
        'SELECT kind, label, fingerprint, coalesce("rows", 0)::BIGINT AS "rows", '
        "coalesce(bytes, 0)::BIGINT AS bytes, was_cached, inputs FROM artifacts "
        f"WHERE run_id = {run} ORDER BY kind, fingerprint",
    )
    artifacts = list({row["fingerprint"]: row for row in used}.values())
    inputs = {row["fingerprint"]: json.loads(row["inputs"] or "[]") for row in artifacts}
    return {
        "picture": picture_lineage(artifacts, inputs, record) if artifacts else None,
        "sources": [
            (
                row["dataset"],
                row["source_uri"],
                show_size(row["bytes"]),
                (row["sha256"] or DASH)[:N_DIGITS],
                row["rows_read"],
                row["n_samples"],
                row["n_rejected"],
                row["reasons"] or DASH,
            )
            for row in _describe_sources(session, run)
        ],
        "classifiers": sorted(
            {
                item["fingerprint"]
                for found in inputs.values()
                for item in found
                if item["kind"] == "classifier"
            }
        ),
        "patches": [
            (
                row["arm"],
                row["intervention"],
                row["n_components"] or DASH,
                row["n_linears"] or DASH,
                DASH if row["factor"] is None else f"{row['factor']:g}",
                (row["base_digest"] or DASH)[:N_DIGITS],
                (row["patched_digest"] or DASH)[:N_DIGITS],
            )
            for row in ask(
                session,
                "SELECT arm, intervention, n_components, n_linears, factor, base_digest, "
                f"patched_digest FROM patches WHERE run_id = {run} ORDER BY arm",
            )
        ],
        "n_artifacts": len(artifacts),
        "n_bytes": sum(row["bytes"] for row in artifacts),
    }


def picture_lineage(
    artifacts: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Sequence[Mapping[str, Any]]],
    record: RunRecord,
) -> DrawnChart:
    """Draw artifacts by kind, those that rest on a patch apart from those that do not.

    Args:
        artifacts: `kind`, `fingerprint`, `rows`, `bytes`, `was_cached` of each.
        inputs: Fingerprint -> `kind` and `fingerprint` of what it was made from.
        record: Of their run; a gate that decided stands at the end.
    """
    groups, made_from = _group(artifacts, inputs)
    names = _name_groups(groups.values())
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    by_fingerprint = {row["fingerprint"]: row for row in artifacts}
    for fingerprint, group in groups.items():
        members[names[group]].append(by_fingerprint.get(fingerprint, {}))
    boxes = {
        names[group]: Box(
            name=names[group],
            note=_count(members[names[group]], is_outside=group.kind in OUTSIDE),
            is_outside=group.kind in OUTSIDE or not any(members[names[group]]),
            is_accented=group.is_patched,
        )
        for group in names
    }
    lines = {
        names[group]: frozenset(names[source] for source in sources)
        for group, sources in made_from.items()
    }
    if record.checks:
        boxes[GATE] = Box(GATE, record.status, is_accented=record.release is not None)
        lines[GATE] = frozenset(names[group] for group in names if group.kind in JUDGED)
    summary = (
        f"{len(artifacts)} artifacts of {len({row['kind'] for row in artifacts})} kinds, from "
        f"{', '.join(sorted(box.name for box in boxes.values() if box.is_outside)) or 'nothing'}"
        f"{' down to the gate' if record.checks else ''}."
    )
    ranks = rank_boxes(lines, boxes)
    return DrawnChart(
        title="What was made from what",
        summary=summary,
        columns=COLUMNS,
        wide=draw_lineage(boxes, lines, summary, is_narrow=False),
        narrow=draw_lineage(boxes, lines, summary, is_narrow=True),
        rows=tuple(
            (
                name,
                ", ".join(sorted(lines.get(name, ()))) or DASH,
                len(members[name]),
                f"{sum(row.get('rows', 0) for row in members[name]):,}",
                show_size(sum(row.get("bytes", 0) for row in members[name])),
                sum(bool(row.get("was_cached")) for row in members[name]),
            )
            for name in sorted(boxes, key=lambda name: (ranks[name], name))
            if name != GATE
        ),
    )


def _group(
    artifacts: Sequence[Mapping[str, Any]], inputs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[dict[str, _Group], dict[_Group, set[_Group]]]:
    """Fingerprint -> group, and what each group was made from.

    Kinds alone could stand in a circle: continuations make a patch, which makes continuations.
    Where the patch does not tell them apart, how deep they stand does: it never goes in circles.
    """
    kinds = {row["fingerprint"]: str(row["kind"]) for row in artifacts}
    for found in inputs.values():
        for item in found:
            kinds.setdefault(item["fingerprint"], str(item["kind"]))
    sources = {
        fingerprint: {item["fingerprint"] for item in inputs.get(fingerprint, ())}
        for fingerprint in kinds
    }
    is_patched: dict[str, bool] = {}
    depths: dict[str, int] = {}
    for fingerprint in TopologicalSorter(sources).static_order():
        above = sources[fingerprint]
        is_patched[fingerprint] = kinds[fingerprint] == "patch" or any(
            is_patched[source] for source in above
        )
        depths[fingerprint] = max((depths[source] + 1 for source in above), default=0)

    def by_patch(fingerprint: str) -> _Group:
        return _Group(kinds[fingerprint], is_patched[fingerprint])

    def by_depth(fingerprint: str) -> _Group:
        return _Group(kinds[fingerprint], is_patched[fingerprint], depths[fingerprint])

    groups, made_from = _link(sources, by_patch)
    try:
        TopologicalSorter(made_from).prepare()
    except CycleError:
        groups, made_from = _link(sources, by_depth)
    return groups, made_from


def _link(
    sources: Mapping[str, set[str]], choose: Callable[[str], _Group]
) -> tuple[dict[str, _Group], dict[_Group, set[_Group]]]:
    groups = {fingerprint: choose(fingerprint) for fingerprint in sources}
    made_from: dict[_Group, set[_Group]] = {group: set() for group in groups.values()}
    for fingerprint, above in sources.items():
        made_from[groups[fingerprint]] |= {groups[source] for source in above}
    return groups, made_from


def _name_groups(groups: Iterable[_Group]) -> dict[_Group, str]:
    """What each box is called: its kind, and what tells it from others of that kind."""
    by_kind: dict[str, list[_Group]] = defaultdict(list)
    for group in dict.fromkeys(groups):
        by_kind[group.kind].append(group)
    names = {}
    for kind, found in by_kind.items():
        words = OUTSIDE.get(kind, kind.replace("_", " "))
        for group in found:
            parts = [words]
            if len({other.is_patched for other in found}) > 1:
                parts.append("patched" if group.is_patched else "base")
            if len([other for other in found if other.is_patched == group.is_patched]) > 1:
                parts.append(str(group.depth))
            names[group] = ", ".join(parts)
    return names


def _count(rows: Sequence[Mapping[str, Any]], *, is_outside: bool) -> str:
    """`3 artifacts, 1,234 rows`; of what came from outside only how many."""
    known = [row for row in rows if row]
    if is_outside or not known:
        return f"{len(rows)} from outside"
    n_rows = sum(row["rows"] for row in known)
    parts = [f"{len(known)} artifacts"] if len(known) > 1 else []
    parts += [f"{n_rows:,} rows"] if n_rows else []
    return ", ".join(parts)


def _describe_sources(session: AuditSession, run: str) -> _Rows:
    """Source files of a run with their digests, and what became of each row."""
    return ask(
        session,
        f"""
        WITH used AS (SELECT DISTINCT fingerprint FROM artifacts
                      WHERE run_id = {run} AND kind = 'samples'),
        kept AS (SELECT fingerprint, source_uri, count(*) AS n FROM samples
                 JOIN used USING (fingerprint) GROUP BY ALL),
        lost AS (SELECT fingerprint, source_uri, sum(n)::BIGINT AS n,
                   string_agg(reason || ' ' || n, ', ' ORDER BY reason) AS reasons
                 FROM (SELECT fingerprint, source_uri, reason, count(*) AS n FROM rejected_rows
                       JOIN used USING (fingerprint) GROUP BY ALL) GROUP BY ALL)
        SELECT f.dataset, f.source_uri, f.sha256, f.bytes, f.rows_read,
          coalesce(kept.n, 0) AS n_samples, coalesce(lost.n, 0) AS n_rejected, lost.reasons
        FROM source_files f JOIN used USING (fingerprint)
        LEFT JOIN kept USING (fingerprint, source_uri)
        LEFT JOIN lost USING (fingerprint, source_uri)
        ORDER BY f.dataset, f.source_uri
        """,
    )
