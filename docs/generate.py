"""Write what documents say of the code from the code.

Whole pages: settings.md, tables.md, views.md. Parts between marks: the README's stages and rooms,
the picture in how-it-works.md, the tools in exports.md, the index of decisions. `python
docs/generate.py` writes them, `--check` fails if they are not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from eigenshift.audit.dictionary import list_entries
from eigenshift.base import schemas
from eigenshift.settings import (
    ActivationSettings,
    BenchmarkSettings,
    ColumnMapping,
    CompareSettings,
    ComponentSettings,
    EvaluationSettings,
    ExecutionSettings,
    GateSettings,
    GenerationSettings,
    IngestionSettings,
    JudgeSettings,
    ModelSettings,
    PromptSettings,
    RefreshSettings,
    ScorerQualitySettings,
    ScorerSettings,
    SitePooling,
    SourceSettings,
    StatisticsSettings,
    TuneSettings,
)
from eigenshift.stages import tables
from eigenshift.stages.tables import Table

sys.path.insert(0, str(Path(__file__).parent))
import pictures

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
PARTS: dict[Path, dict[str, Callable[[], str]]] = {
    ROOT / "README.md": {"stages": pictures.tabulate_stages, "rooms": pictures.draw_rooms},
    FOLDER / "how-it-works.md": {
        "pipeline": pictures.draw_pipeline,
        "colours": pictures.explain_colours,
    },
    FOLDER / "exports.md": {"targets": pictures.tabulate_targets},
    FOLDER / "decisions" / "README.md": {"decisions": pictures.list_decisions},
}
"""Document -> name of the mark -> what stands there."""
SECTIONS: dict[str, type[BaseModel]] = {
    "(top level)": RefreshSettings,
    "model": ModelSettings,
    "sources[]": SourceSettings,
    "sources[].columns": ColumnMapping,
    "ingestion": IngestionSettings,
    "activations": ActivationSettings,
    "activations.sites[]": SitePooling,
    "statistics": StatisticsSettings,
    "prompts": PromptSettings,
    "generation": GenerationSettings,
    "scorer": ScorerSettings,
    "scorer.judge": JudgeSettings,
    "scorer_quality": ScorerQualitySettings,
    "components": ComponentSettings,
    "evaluation": EvaluationSettings,
    "benchmark": BenchmarkSettings,
    "gate": GateSettings,
    "tune": TuneSettings,
    "compare": CompareSettings,
    "execution": ExecutionSettings,
}


def describe_settings() -> str:
    """Every setting with its type, default and meaning."""
    lines = [
        "# Settings",
        "",
        "Generated from `eigenshift/settings/` by `make docs`; do not edit.",
        "",
        "A settings file is YAML with these sections; `--set section.field=value` overrides one. "
        "Paths in it beginning with `./` or `../` are relative to the file; those of `--set` and "
        "`--store`, and the default store, to the working folder.",
        "",
        "*Read by*: the stages whose fingerprint holds the field, or that find by it what lies "
        "outside the store. Changing it does exactly these again, and what follows from them "
        "([how it works](how-it-works.md)); a dash redoes nothing. What decides on a release, or "
        "how fast a run goes, is read by no stage; what a search or a comparison is made of is "
        "read by `tune` and `compare` themselves, which also build patches of their own from "
        "`components`.",
    ]
    for section, model in SECTIONS.items():
        lines += [
            "",
            f"## {section}",
            "",
            "| field | type | default | meaning | read by |",
            "|---|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _show_default(field.default)
            kind = _show_type(field.annotation)
            path = name if section == "(top level)" else f"{section}.{name}"
            readers = "-" if _is_section(field.annotation) else pictures.show_redone(path)
            lines.append(
                f"| `{name}` | {kind} | {default} | {field.description or ''} | {readers} |"
            )
    return "\n".join(lines) + "\n"


def describe_tables() -> str:
    """Every Parquet table with its columns."""
    lines = [
        "# Tables",
        "",
        "Generated from the stages' declarations and `base/schemas.py` by `make docs`; do not "
        "edit. What can be asked in SQL is in [views.md](views.md).",
    ]
    for table, kinds in pictures.list_tables():
        holders = ", ".join(f"`{kind}`" for kind in kinds)
        lines += ["", f"## {table.file}", "", f"In artifacts of kind {holders}.", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        schema = _show_schema(table)
        for field in schema:
            meaning = (field.metadata or {}).get(b"meaning", b"").decode()
            lines.append(f"| `{field.name}` | {field.type} | {meaning} |")
    return "\n".join(lines) + "\n"


def describe_views() -> str:
    """The data dictionary of the audit."""
    lines = [
        "# Audit views: the data dictionary",
        "",
        "Generated from `base/schemas.py` and `audit/views.py` by `make docs`; do "
        'not edit. Ask with `eigenshift audit --store URL "SELECT ..."`. A column marked *text* '
        "may be offensive and is shown only if a query names it.",
    ]
    view = ""
    for entry in list_entries():
        if entry.view != view:
            view = entry.view
            lines += ["", f"## {view}", "", "| column | type | unit | meaning |"]
            lines += ["|---|---|---|---|"]
        name = f"`{entry.column}`" + (" *text*" if entry.column in schemas.TEXT_COLUMNS else "")
        lines.append(f"| {name} | {entry.type} | {entry.unit} | {entry.meaning} |")
    return "\n".join(lines) + "\n"


def _show_schema(table: Table) -> pa.Schema:
    """A table's columns; of activations those of an example."""
    if table is tables.ACTIVATIONS:
        widths = {"mlp_activation_max": 512, "residual_mean": 128}
        return schemas.activations_schema(widths, "float16")
    return table.expect(pa.schema([]))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def fill_parts(path: Path, text: str) -> str:
    """A document with what stands between its marks made anew."""
    for name, make in PARTS.get(path, {}).items():
        start, end = f"<!-- {name}: make docs -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{path}: expected the marks {start} and {end}, found none.")
        text = f"{before}{start}\n\n{make()}\n\n{end}{after}"
    return text


def _show_type(annotation: Any) -> str:
    text = _name_type(_drop_metadata(annotation))
    text = re.sub(r"\b(typing|annotated_types|eigenshift\.settings\.\w+)\.", "", text)
    return f"`{text}`".replace("|", "\\|")


def _name_type(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_name_type, get_args(annotation)))
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _drop_metadata(annotation: Any) -> Any:
    """The type without validators: these print as addresses, which differ between runs."""
    if get_origin(annotation) is Annotated:
        return _drop_metadata(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return reduce(or_, map(_drop_metadata, get_args(annotation)))
    origin = get_origin(annotation)
    if origin in (tuple, dict):
        return GenericAlias(origin, tuple(map(_drop_metadata, get_args(annotation))))
    return annotation


def _show_default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        return "see its section"
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        return "`" + ", ".join(getattr(item, "column", str(item)) for item in default) + "`"
    value = getattr(default, "value", default)
    return "empty" if value is None else f"`{value}`"


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a page is not up to date")
    is_check = parser.parse_args().check
    pages = {
        FOLDER / "settings.md": describe_settings(),
        FOLDER / "tables.md": describe_tables(),
        FOLDER / "views.md": describe_views(),
        **{path: fill_parts(path, path.read_text(encoding="utf-8")) for path in PARTS},
    }
    outdated = []
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(str(path.relative_to(ROOT)))
            if not is_check:
                path.write_text(text, encoding="utf-8")
    if is_check and outdated:
        sys.stderr.write(f"not up to date: {', '.join(outdated)}. Run `make docs`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
