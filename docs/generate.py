"""Write the generated pages of docs/ from the code: settings.md, tables.md and views.md.

`python docs/generate.py` writes them, `--check` fails if they are not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from eigenshift import schemas
from eigenshift.audit.dictionary import list_entries
from eigenshift.settings import (
    ActivationSettings,
    ColumnMapping,
    ComponentSettings,
    EvaluationSettings,
    ExecutionSettings,
    GateSettings,
    GenerationSettings,
    IngestionSettings,
    ModelSettings,
    PromptSettings,
    RefreshSettings,
    ScorerSettings,
    SitePooling,
    SourceSettings,
    StatisticsSettings,
    TuneSettings,
)

FOLDER = Path(__file__).parent
RECORD_VIEWS = ("RUNS", "ARTIFACTS", "PATCHES", "RELEASES")
"""Made from records, not from Parquet files."""
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
    "components": ComponentSettings,
    "evaluation": EvaluationSettings,
    "gate": GateSettings,
    "tune": TuneSettings,
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
        "`--store`, and the default store, to the working folder. Everything but `store` and "
        "`execution` enters the fingerprints of the stages that read it.",
    ]
    for section, model in SECTIONS.items():
        lines += [
            "",
            f"## {section}",
            "",
            "| field | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _show_default(field.default)
            kind = _show_type(field.annotation)
            lines.append(f"| `{name}` | {kind} | {default} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def describe_tables() -> str:
    """Every Parquet table with its columns."""
    lines = [
        "# Tables",
        "",
        "Generated from `eigenshift/schemas.py` by `make docs`; do not edit. What can be asked in "
        "SQL is in [views.md](views.md).",
    ]
    for title, schema in _list_schemas():
        lines += ["", f"## {title}", "", "| column | type | meaning |", "|---|---|---|"]
        for field in schema:
            meaning = (field.metadata or {}).get(b"meaning", b"").decode()
            lines.append(f"| `{field.name}` | {field.type} | {meaning} |")
    return "\n".join(lines) + "\n"


def describe_views() -> str:
    """The data dictionary of the audit."""
    lines = [
        "# Audit views: the data dictionary",
        "",
        "Generated from `eigenshift/schemas.py` and `eigenshift/audit/views.py` by `make docs`; do "
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


def _list_schemas() -> Iterator[tuple[str, Any]]:
    for name, value in vars(schemas).items():
        if isinstance(value, pa.Schema) and name not in RECORD_VIEWS:
            yield name.lower(), value
    widths = {"mlp_activation_max": 512, "residual_mean": 128}
    yield "activations (widths of an example)", schemas.activations_schema(widths, "float16")


def _show_type(annotation: Any) -> str:
    annotation = _drop_metadata(annotation)
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"\b(typing|annotated_types|eigenshift\.settings\.\w+)\.", "", text)
    return f"`{text}`".replace("|", "\\|")


def _drop_metadata(annotation: Any) -> Any:
    """The type without validators: these print as addresses, which differ between runs."""
    if get_origin(annotation) is Annotated:
        return _drop_metadata(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return reduce(or_, map(_drop_metadata, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return GenericAlias(tuple, tuple(map(_drop_metadata, get_args(annotation))))
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
    pages = {"settings.md": describe_settings(), "tables.md": describe_tables()}
    pages["views.md"] = describe_views()
    outdated = []
    for name, text in pages.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(name)
            if not is_check:
                path.write_text(text, encoding="utf-8")
    if is_check and outdated:
        sys.stderr.write(f"docs/: not up to date: {', '.join(outdated)}. Run `make docs`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
