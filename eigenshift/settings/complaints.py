"""What is said of settings that do not fit: where they were given, what was expected, what is near.

The words are ours: pydantic's speak of inputs, types and extras, which nobody typed. Values of URLs
with credentials are not repeated. Reading and checking settings is `loading.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from eigenshift.base.suggestions import find_meant, suggest

REFERENCE = "docs/settings.md lists every field."
EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of settings",
    "model_attributes_type": "a section of settings",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "some text",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
}
"""Kind of pydantic's error -> what is expected, with the bounds that the error carries."""
CHOICES = ("enum", "literal_error")
FORM_OF_UNION = "["
"""In a part of a place, where pydantic names one of the forms that a value might have."""


def describe_misfits(
    error: ValidationError, kind: type[BaseModel], place: str, overrides: Iterable[str] = ()
) -> str:
    """Say which settings do not fit, one line each, each where it was given.

    Args:
        error: What pydantic found.
        kind: The settings that were to be made.
        place: Where they were read, e.g. the file.
        overrides: `key.path=value` given beside it, by the option `--set`.
    """
    given = [override.partition("=")[0].strip() for override in overrides]
    by_path: dict[tuple[str, ...], list[Any]] = {}
    for issue in error.errors(include_url=False):
        path = tuple(part for part in map(str, issue["loc"]) if FORM_OF_UNION not in part)
        by_path.setdefault(path, []).append(issue)
    lines = [_describe(path, issues, kind, place, given) for path, issues in by_path.items()]
    if len(lines) == 1:
        return f"{lines[0]} {REFERENCE}"
    return "\n  ".join([f"{len(lines)} settings do not fit:", *lines]) + f"\n{REFERENCE}"


def list_setting_paths(kind: type[BaseModel]) -> list[str]:
    """Dotted paths of all settings that have a value of their own; of a list its first item's."""
    paths = [".".join(path) for path in _walk(kind, ())]
    return [path for path in paths if not any(other.startswith(f"{path}.") for other in paths)]


def name_option(path: str) -> str:
    """The option by which a setting was given, as it is typed; its value is not repeated."""
    return "--store" if path == "store" else f"--set {path}=..."


def _describe(
    path: tuple[str, ...],
    issues: Sequence[Any],
    kind: type[BaseModel],
    place: str,
    given: Sequence[str],
) -> str:
    dotted = ".".join(path)
    is_unknown = issues[0]["type"] == "extra_forbidden"
    at_fault = [option for option in given if _is_at_fault(path, option, is_unknown=is_unknown)]
    if at_fault:
        is_told = dotted == at_fault[-1] or at_fault[-1].startswith(f"{dotted}.")
        where = name_option(at_fault[-1]) + ("" if is_told else f" ({dotted})")
    else:
        beside = [name_option(option) for option in given if _begins(option, path)]
        where = f"{place}{' with ' if beside else ''}{', '.join(beside)}"
        where += f": {dotted}" if dotted else ""
    if is_unknown:
        return f"{where}: there is no such setting.{_suggest_path(kind, path, at_fault)}"
    return f"{where}: {_explain(issues)}"


def _is_at_fault(path: tuple[str, ...], option: str, *, is_unknown: bool) -> bool:
    """Whether what does not fit is what an option gave, or part of it, or on the way to it."""
    keys = tuple(option.split("."))
    return path[: len(keys)] == keys or (is_unknown and _begins(option, path))


def _begins(option: str, path: tuple[str, ...]) -> bool:
    return tuple(option.split("."))[: len(path)] == path


def _explain(issues: Sequence[Any]) -> str:
    """A sentence about one value; several issues of it are about several forms it might have."""
    first = issues[0]
    expected = [_expect(issue) for issue in issues]
    known = [form for form in dict.fromkeys(expected) if form is not None]
    if not known:
        return f"{first['msg'].removeprefix('Value error, ').rstrip('.')}."
    found = "none" if first["type"] == "missing" else _show_input(first.get("input"))
    return f"expected {' or '.join(known)}, found {found}.{_suggest_choice(first)}"


def _expect(issue: Any) -> str | None:
    """What a value should have been; None where the message says it already."""
    if issue["type"] == "missing":
        return "a value"
    if issue["type"] in CHOICES:
        choices = _list_choices(issue)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    form = EXPECTED.get(issue["type"])
    return None if form is None else form.format(**issue.get("ctx", {}))


def _list_choices(issue: Any) -> list[str]:
    """Pydantic writes them as `'a', 'b' or 'c'`."""
    expected = issue["ctx"]["expected"].replace(" or ", ", ")
    return [choice.strip("'") for choice in expected.split(", ")]


def _suggest_choice(issue: Any) -> str:
    value = issue.get("input")
    is_choice = issue["type"] in CHOICES and isinstance(value, str)
    return suggest(value, _list_choices(issue)) if is_choice else ""


def _show_input(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section of keys and values"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return repr(value) if isinstance(value, str | int | float | bool) else "something else"


def _suggest_path(kind: type[BaseModel], path: tuple[str, ...], options: Sequence[str]) -> str:
    """The setting that was probably meant: one beside it, or one of this name elsewhere."""
    *parents, name = path
    section = _find_section(kind, parents)
    meant = None if section is None else find_meant(name, section.model_fields)
    if meant is not None:
        rest = [] if not options else options[-1].split(".")[len(path) :]
        return f" Did you mean {'.'.join([*parents, meant, *rest])!r}?"
    everywhere = {found[-1]: found for found in reversed(list(_walk(kind, ())))}
    near = find_meant(name, everywhere)
    return "" if near is None else f" Did you mean {'.'.join(everywhere[near])!r}?"


def _find_section(kind: type[BaseModel], parents: Sequence[str]) -> type[BaseModel] | None:
    """The settings at a place, None if the place is not one of settings."""
    section: type[BaseModel] | None = kind
    for name in parents:
        if name.isdigit():
            continue  # of a list
        if section is None or name not in section.model_fields:
            return None
        section = next(_list_sections(section.model_fields[name].annotation), None)
    return section


def _list_sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Settings models that an annotation holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _list_sections(part)


def _walk(kind: type[BaseModel], before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths of all fields; of a list those of its first item."""
    for name, field in kind.model_fields.items():
        yield (*before, name)
        for section in _list_sections(field.annotation):
            is_list = get_origin(field.annotation) is tuple
            yield from _walk(section, (*before, name, *(("0",) if is_list else ())))
