"""A settings file with comments, for a person to go on from: what was given, and the defaults.

Made from the settings' own descriptions, so that it says what they say. A default stands as
`#name: value`, to be switched on by taking the mark away, as in the files of many servers. Returns
text; writing and asking is the command line's, reading it back `loading.py`'s.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eigenshift.base.errors import SettingsError
from eigenshift.settings.complaints import REFERENCE
from eigenshift.settings.loading import parse_section, settle_settings
from eigenshift.settings.run import RefreshSettings
from eigenshift.settings.sources import DEFAULT_ROLES, Role, SourceFormat, SourceSettings

ESSENTIAL = ("store", "model", "sources", "prompts", "generation", "scorer", "gate")
"""Sections that people change first; the others are there when all are asked for."""
EXAMPLES = {role: form.value for form, role in DEFAULT_ROLES.items()} | {
    Role.labelled: SourceFormat.jigsaw.value
}
"""Role -> a format whose texts have it."""
WIDTH = 96
GLOB_MARKS = "*?["
YAML_FORM: dict[str, Any] = {
    "default_flow_style": True,
    "width": 10_000,
    "allow_unicode": True,
    "sort_keys": False,
}
"""A value on one line."""


def choose_sources(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The sources that were named on a command line, as a settings file has them.

    Args:
        texts: Each `format=place`, or a YAML mapping with the fields of `sources[]`.

    Raises:
        SettingsError: One is neither, a value does not fit, or a role has no source.
    """
    found: list[dict[str, Any]] = []
    roles: list[Role] = []
    for text in texts:
        document = _read_source(text)
        names = [source["name"] for source in found]
        name = str(document.get("name") or document.get("format"))
        n_before = sum(other.partition("-")[0] == name for other in names)
        document = {"name": f"{name}-{n_before + 1}" if n_before else name, **document}
        roles.append(parse_section(SourceSettings, document, f"--source {text}").effective_role)
        found.append(document)
    missing = [role for role in RefreshSettings.required_roles if role not in roles]
    if missing:
        examples = " ".join(f"--source {EXAMPLES[role]}=FILE" for role in missing)
        raise SettingsError(
            "init: expected labelled texts, prompts and neutral texts, found no source for: "
            f"{', '.join(role.value for role in missing)}. Add for instance {examples}."
        )
    return found


def compose_settings(
    model: str, sources: Sequence[str], folder: Path, *, store: str | None, shows_all: bool
) -> str:
    """The text of a settings file.

    Args:
        model: Hub id, or path of a folder, relative to the working folder.
        sources: As for `choose_sources`; their paths too are relative to the working folder.
        folder: Where the file will lie; it gets paths relative to that.
        store: Root URL; None leaves the default.
        shows_all: With every section.

    Raises:
        SettingsError: As `choose_sources`, or what comes of it does not fit.
    """
    chosen = choose_sources(sources)
    for source in chosen:
        is_file = source["format"] != SourceFormat.huggingface.value
        source["uri"] = _refer(str(source["uri"]), folder, is_file=is_file)
    document: dict[str, Any] = {} if store is None else {"store": _refer(store, folder)}
    document |= {"model": {"id": _refer(model, folder, is_file=False)}, "sources": chosen}
    settings = settle_settings(RefreshSettings, document, folder, (), "init")
    text = "\n".join(_write_file(settings, document, shows_all=shows_all)) + "\n"
    settle_settings(RefreshSettings, yaml.safe_load(text), folder, (), "init")
    return text


def find_absent(text: str, folder: Path) -> list[str]:
    """Places of a settings file which are of this machine and where nothing is yet."""
    document = yaml.safe_load(text)
    places = [document["model"]["id"], *(source["uri"] for source in document["sources"])]
    return [
        place
        for place in places
        if place.startswith(("./", "../", "/"))
        and not any(mark in place for mark in GLOB_MARKS)
        and not (folder / place).exists()
    ]


def _read_source(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError:
            document = None
        if isinstance(document, dict) and {"format", "uri"} <= set(document):
            return document
    else:
        form, separator, place = text.partition("=")
        if separator and form and place:
            return {"format": form.strip(), "uri": place.strip()}
    raise SettingsError(
        f"--source {text}: expected FORMAT=PLACE, such as jigsaw=train.csv, or a mapping such as "
        "'{format: huggingface, uri: owner/name, columns: {text: comment, label: toxic}}'. "
        f"Formats: {', '.join(item.value for item in SourceFormat)}."
    )


def _refer(place: str, folder: Path, *, is_file: bool = True) -> str:
    """A place as the file names it: paths of this machine relative to its folder."""
    is_path = place.startswith(("./", "../")) or Path(place).exists()
    if "://" in place or Path(place).is_absolute() or not (is_file or is_path):
        return place
    relative = os.path.relpath(place, folder)
    return relative if relative.startswith("..") else f"./{relative}"


def _write_file(
    settings: RefreshSettings, document: Mapping[str, Any], *, shows_all: bool
) -> Iterator[str]:
    yield "# Settings for EigenShift. A line such as  #n_samples: 25  is a default: take the # away"
    yield "# to change it. Paths that begin with ./ or ../ are relative to this file."
    yield f"# {REFERENCE}"
    for name, field in RefreshSettings.model_fields.items():
        if not shows_all and name not in ESSENTIAL:
            continue
        yield ""
        value, given = getattr(settings, name), document.get(name)
        if name == "sources":
            yield from _describe(field, "")
            yield f"{name}:"
            for number, source in enumerate(given or []):
                yield from _write_item(SourceSettings, source, shows_defaults=number == 0)
        elif isinstance(value, BaseModel):
            yield from _describe(field, "")
            yield f"{name}:"
            yield from _write_section(type(value), given or {}, "  ")
        else:
            yield from _write_field(name, field, {} if given is None else {name: given}, "")


def _write_item(
    kind: type[BaseModel], given: Mapping[str, Any], *, shows_defaults: bool
) -> Iterator[str]:
    """One item of a list of sections; the defaults of the first stand for all."""
    lines = (
        list(_write_section(kind, given, "    "))
        if shows_defaults
        else [f"    {name}: {_write_value(value)}" for name, value in given.items()]
    )
    first = next(place for place, line in enumerate(lines) if not line.lstrip().startswith("#"))
    yield from (line.removeprefix("  ") for line in lines[:first])
    yield f"  - {lines[first].lstrip()}"
    yield from lines[first + 1 :]


def _write_section(kind: type[BaseModel], given: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield from _write_field(name, field, given, indent)


def _write_field(
    name: str, field: FieldInfo, given: Mapping[str, Any], indent: str
) -> Iterator[str]:
    yield from _describe(field, indent)
    if name in given:
        yield f"{indent}{name}: {_write_value(given[name])}"
    else:
        yield f"{indent}#{name}: {_write_value(field.get_default())}"


def _describe(field: FieldInfo, indent: str) -> Iterator[str]:
    text = field.description or ""
    choices = _list_choices(field.annotation)
    if choices:
        text = f"{text} One of: {', '.join(choices)}."
    for line in textwrap.wrap(text, WIDTH - len(indent) - 2, break_long_words=False):
        yield f"{indent}# {line}"


def _list_choices(annotation: Any) -> list[str]:
    """The values of a field that has few."""
    if isinstance(annotation, type) and hasattr(annotation, "__members__"):
        return [str(item.value) for item in annotation]  # type: ignore[attr-defined]
    if get_origin(annotation) is not None and str(annotation).startswith("typing.Literal"):
        return [str(value) for value in get_args(annotation)]
    return []


def _write_value(value: Any) -> str:
    plain = _make_plain(value)
    text = yaml.safe_dump(plain, **YAML_FORM)
    return str(text).removesuffix("\n").removesuffix("\n...")


def _make_plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_make_plain(item) for item in value]
    return getattr(value, "value", value)
