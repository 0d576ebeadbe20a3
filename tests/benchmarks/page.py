"""Put the last figures of all benchmarks into docs/benchmarks.md, from `.benchmarks/`.

Run by hand after `make bench` on a quiet machine, so that no figure is copied by hand. Benchmarks
without a result there keep the figures the page has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / ".benchmarks"
BEGIN, END = "<!-- figures of {name} -->\n", "<!-- end -->"


def tabulate(result: dict[str, Any]) -> str:
    """Bars and figures of a result as a Markdown table, what is missing and the machine below.

    Beside its bars a result may have `figures` (rows without one), `not_measured` (what has no
    figure, and why) and `device` (where it ran, if not on the processor).
    """
    machine = result["machine_at_the_end"]
    rows = [
        f"| {bar['what']} | {bar['bar']} | {bar['found']:g} | "
        f"{'met' if bar['is_met'] else '**not met**'} |"
        for bar in result["bars"]
    ]
    rows += [f"| {row['what']} | - | {row['found']:g} | |" for row in result.get("figures", [])]
    table = ["| what | bar | found | |", "|---|---|---|---|", *rows, ""] if rows else []
    missing = [f"- Not measured: {reason}." for reason in result.get("not_measured", [])]
    device = ", ".join(f"{key} {value}" for key, value in result.get("device", {}).items())
    load = ", ".join(map(str, machine["load_average"]))
    return "\n".join(
        [
            *table,
            *missing,
            *([""] if missing else []),
            *([f"Device: {device}.", ""] if device else []),
            f"{result['measured_at'][:10]}, {machine['processor']}, {machine['n_cores']} cores, "
            f"{machine['memory_gib']} GiB, Python {machine['python']}; load average at the end "
            f"{load}.",
            "",
        ]
    )


def main() -> None:
    """Replace what is between the marks of each benchmark."""
    text = PAGE.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        begin = BEGIN.format(name=result["benchmark"])
        if begin not in text:
            raise SystemExit(f"docs/benchmarks.md: expected {begin.strip()!r}, found none. Add it.")
        before, _, rest = text.partition(begin)
        text = before + begin + tabulate(result) + END + rest.partition(END)[2]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
