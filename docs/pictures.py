"""Parts of documents that are made from the code: the stages, the pipeline's picture, the rooms.

Read the declarations (`eigenshift/pipeline.py`), the rooms' own descriptions and the tools that
exports are for. Writing them into
the documents is `generate.py`'s.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from eigenshift.exporting.targets import HEAD_FATES, Fate
from eigenshift.pipeline import STAGES, find_readers, list_sources
from eigenshift.reporting.lineage import OUTSIDE
from eigenshift.settings import ExportTarget
from eigenshift.stages.stage import Stage
from eigenshift.stages.tables import Table

ROOT = Path(__file__).parents[1]
ORDER = (
    ("base", "charts"),
    ("settings", "store"),
    ("ngrams",),
    ("fetching",),
    ("stages",),
    ("datasets", "model", "ledger"),
    ("detection", "toxicity"),
    ("components",),
    ("patches",),
    ("generation", "evaluation"),
    ("benchmarks",),
    ("readiness",),
    ("audit", "upkeep"),
    ("reporting",),
    ("exporting",),
    ("api",),
)
"""Rooms from the ground up; the contract in pyproject.toml is what is checked."""
COLOURS = {
    "datasets": "#dbe9f6",
    "model": "#e6e0f3",
    "detection": "#d8efe0",
    "generation": "#fdebd3",
    "toxicity": "#f9d9d6",
    "components": "#fff3bf",
    "patches": "#e2d4c8",
    "evaluation": "#d5eef0",
    "benchmarks": "#e3ecd0",
}


def tabulate_stages() -> str:
    """A table: stage, what it reads, the artifact it makes, where its work is."""
    lines = ["| stage | reads | artifact | module |", "|---|---|---|---|"]
    for stage in STAGES:
        sources = ", ".join(OUTSIDE.get(kind, f"`{kind}`") for kind in list_sources(stage))
        place = f"{stage.room}/{stage.module.split('.', 2)[2].replace('.', '/')}"
        folder = ROOT / "eigenshift" / place
        path = f"{place}/" if folder.is_dir() else f"{place}.py"
        lines.append(f"| `{stage.name}` | {sources} | `{stage.kind}` | `{path}` |")
    return "\n".join(lines)


def draw_pipeline() -> str:
    """The pipeline as a mermaid diagram: artifacts are nodes, stages edges, rooms colours.

    Nearly every stage depends on the model; of these edges only those of what reads little else
    are drawn.
    """
    lines = ["```mermaid", "flowchart LR"]
    lines += [f'  {kind}(["{name}"]):::outside' for kind, name in OUTSIDE.items()]
    lines += [f"  {stage.kind}[{stage.kind}]:::{stage.room}" for stage in STAGES]
    for stage in STAGES:
        sources = [kind for kind in list_sources(stage) if kind != "model"] or ["model"]
        first, *others = sources
        lines.append(f"  {first} -->|{stage.name}| {stage.kind}")
        lines += [f"  {source} --> {stage.kind}" for source in others]
    lines += [
        '  gate{{"gate"}}:::decision',
        '  releases[("releases")]:::decision',
        *(
            f"  {kind} --> gate"
            for kind in (
                "evaluation",
                "token_shifts",
                "control_draws",
                "benchmarks",
                "reload_check",
            )
        ),
        "  gate --> releases",
        "  classDef outside fill:#ffffff,stroke:#888,stroke-dasharray:4 3,color:#222",
        "  classDef decision fill:#444,color:#fff",
        *(f"  classDef {room} fill:{c},stroke:#555,color:#222" for room, c in COLOURS.items()),
        "```",
    ]
    return "\n".join(lines)


def explain_colours() -> str:
    """Which room has which colour, for readers of the picture."""
    cells = (
        f'<span style="background:{colour};color:#222;padding:0 .5em">{room}</span>'
        for room, colour in COLOURS.items()
    )
    return " ".join(cells)


def draw_rooms() -> str:
    """The map of the library: what stands in the folder, from the top down."""
    rows = [
        (f"{room}/", _describe(f"{room}/__init__.py")) for line in reversed(ORDER) for room in line
    ]
    flat = [(name, _describe(name)) for name in ("pipeline.py",)]
    flat.append(("models.py, patching.py", "Public names for notebooks and for what exports show."))
    place = next(n for n, (name, _) in enumerate(rows) if name == "benchmarks/")
    rows[place:place] = [flat[0]]
    rows += flat[1:]
    width = max(len(name) for name, _ in rows)
    lines = [f"      {name:<{width}}  {text}" for name, text in rows]
    return "\n".join(["    eigenshift/", *lines])


def _describe(file: str) -> str:
    """First line of a module's description, without what the name says already."""
    text = ast.get_docstring(ast.parse(ROOT.joinpath("eigenshift", file).read_text("utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    name, _, rest = first.partition(": ")
    says_its_name = name.lower().removeprefix("the ") == file.partition("/")[0]
    return f"{rest[0].upper()}{rest[1:]}" if says_its_name else first


def show_redone(path: str) -> str:
    """What changing a setting does again, for a table of settings."""
    readers: Sequence[Stage] = find_readers(path)  # type: ignore[type-arg]
    return ", ".join(f"`{stage.name}`" for stage in readers) or "-"


def list_tables() -> Iterator[tuple[Table, list[str]]]:
    """Every table with the kinds of artifacts that hold it."""
    kinds: dict[Table, list[str]] = {}
    for stage in STAGES:
        for table in stage.tables:
            kinds.setdefault(table, []).append(stage.kind)
    yield from kinds.items()


def tabulate_targets() -> str:
    """A table: what becomes of a changed head, in which tool, for which model types."""
    lines = [
        "| a changed head is | in GGUF (llama.cpp) | in vLLM | in SGLang |",
        "|---|---|---|---|",
    ]
    for fate in Fate:
        cells = [
            ", ".join(f"`{name}`" for name, found in HEAD_FATES[target].items() if found is fate)
            for target in ExportTarget
        ]
        lines.append(f"| {fate.value} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines)


def list_decisions() -> str:
    """One line for each decision; numbers that are missing were never used."""
    lines = []
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        number, _, name = title.partition(" ")
        lines.append(f"- [{number.rstrip(':')}]({path.name}) {name}")
    return "\n".join(lines)
