"""Load settings: presets, a YAML file, `key=value` overrides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from eigenshift.base.errors import SettingsError
from eigenshift.base.suggestions import suggest
from eigenshift.settings.complaints import describe_misfits, name_option
from eigenshift.settings.run import RefreshSettings
from eigenshift.settings.sources import Role, SourceSettings

PRESET_FOLDER = Path(__file__).parent / "presets"

AnySettings = TypeVar("AnySettings", bound=RefreshSettings)
AnySection = TypeVar("AnySection", bound=BaseModel)


def list_presets() -> list[str]:
    """Names usable with `--preset`."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def find_preset(name: str) -> Path:
    """Where a shipped preset is.

    Raises:
        SettingsError: There is no such preset.
    """
    path = PRESET_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"preset {name!r}: expected one of {', '.join(list_presets())}, found no such preset."
            f"{suggest(name, list_presets())} Choose one of these with --preset, or give a file "
            "with --config."
        )
    return path


def load_preset(name: str, overrides: Iterable[str] = ()) -> RefreshSettings:
    """Load a shipped preset.

    Raises:
        SettingsError: There is no such preset, or an override does not fit.
    """
    return load_settings(find_preset(name), overrides)


def load_settings(path: Path, overrides: Iterable[str] = ()) -> RefreshSettings:
    """Load a refresh's settings, as `load_settings_as`."""
    return load_settings_as(RefreshSettings, path, overrides)


def load_settings_as(
    kind: type[AnySettings], path: Path, overrides: Iterable[str] = ()
) -> AnySettings:
    """Load settings from a YAML file and apply `key.path=value` overrides.

    Paths in the file that begin with `./` or `../` are relative to the file itself; those given as
    overrides, and the default store, are relative to the working folder.

    Raises:
        SettingsError: The file is missing or no YAML mapping, or a value does not fit.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path}: expected a readable settings file, found {error.strerror or error}. "
            "Check the path given with --config."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: expected YAML in UTF-8, found: {error}.") from error
    if not isinstance(document, dict):
        raise SettingsError(
            f"{path}: expected a mapping of settings, found {type(document).__name__}."
        )
    return settle_settings(kind, document, path.resolve().parent, overrides, str(path))


def settle_settings(
    kind: type[AnySettings],
    document: Mapping[str, Any],
    folder: Path,
    overrides: Iterable[str],
    place: str,
) -> AnySettings:
    """Settings from plain values, as `load_settings_as`.

    Args:
        kind: Of settings.
        document: The values.
        folder: Paths that begin with `./` or `../` are relative to it.
        overrides: `key.path=value`.
        place: Names the origin in errors.

    Raises:
        SettingsError: A value does not fit.
    """
    filled = {name: value for name, value in document.items() if not _is_left_empty(name, value)}
    settled, given = _resolve_paths(filled, folder), list(overrides)
    for override in given:
        _apply_override(settled, override)
    return parse_settings_as(kind, settled, place, given)


def _is_left_empty(name: str, value: Any) -> bool:
    """Whether a section has a heading and nothing below it: then its defaults are meant."""
    field = RefreshSettings.model_fields.get(name)
    return value is None and field is not None and isinstance(field.default, BaseModel)


def override_settings(
    document: Mapping[str, Any], overrides: Iterable[str], place: str
) -> RefreshSettings:
    """The settings of a record with `key.path=value` overrides, as `load_settings_as`.

    Raises:
        SettingsError: An override, or what is there, does not fit.
    """
    changed, given = deepcopy(dict(document)), list(overrides)
    for override in given:
        _apply_override(changed, override)
    return parse_settings_as(RefreshSettings, changed, place, given)


def parse_settings(document: Mapping[str, Any], place: str) -> RefreshSettings:
    """Validate a refresh's settings, as `parse_settings_as`."""
    return parse_settings_as(RefreshSettings, document, place)


def parse_settings_as(
    kind: type[AnySettings], document: Mapping[str, Any], place: str, overrides: Sequence[str] = ()
) -> AnySettings:
    """Validate a mapping.

    Args:
        kind: Of settings.
        document: The values, with the overrides in them.
        place: Names their origin in errors.
        overrides: `key.path=value`, to be named where one of them is at fault.

    Raises:
        SettingsError: One line per field that does not fit: where, what was found, what is near.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise SettingsError(describe_misfits(error, kind, place, overrides)) from error


def parse_section(kind: type[AnySection], document: Mapping[str, Any], place: str) -> AnySection:
    """Validate one section's values; `place` names their origin in the error.

    Raises:
        SettingsError: One line per field that does not fit.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise SettingsError(describe_misfits(error, kind, place)) from error


def parse_source(text: str, name: str) -> SourceSettings:
    """Read a labelled source given on the command line, e.g. `{format: jigsaw, uri: train.csv}`.

    Args:
        text: A YAML mapping with the fields of `sources[]`.
        name: Of the source, if it has none.

    Raises:
        SettingsError: It is no mapping, or a value does not fit.
    """
    place = f"--source {name}"
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{place}: the value is not valid YAML: {error}.") from error
    if not isinstance(document, dict):
        raise SettingsError(
            f"{place}: expected a mapping, found {type(document).__name__}. Give for instance "
            "--source '{format: jigsaw, uri: train.csv}'."
        )
    return parse_section(SourceSettings, {"name": name, "role": Role.labelled, **document}, place)


def _resolve_paths(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make relative paths in a settings file relative to the file's own folder."""

    def resolve(place: str) -> str:
        return str((folder / place).resolve()) if place.startswith(("./", "../")) else place

    return map_locations(document, resolve)


def map_locations(document: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Settings in which every path, URL and hub id is what `change` makes of it.

    Args:
        document: Settings as plain values; a part that is not of the expected form is left alone.
        change: Takes and gives one location.
    """

    def change_keys(section: Any, keys: tuple[str, ...]) -> Any:
        if not isinstance(section, dict):
            return section
        return {
            key: change(value) if key in keys and isinstance(value, str) else value
            for key, value in section.items()
        }

    def change_scorer(section: Any) -> Any:
        found = change_keys(section, ("checkpoint", "config_folder", "model", "words"))
        if isinstance(found, dict) and isinstance(found.get("for_languages"), list):
            found["for_languages"] = [change_scorer(part) for part in found["for_languages"]]
        if isinstance(found, dict) and "judge" in found:
            found["judge"] = change_keys(found["judge"], ("prompt_file",))
        return found

    changed = dict(change_keys(dict(document), ("store",)))
    if isinstance(document.get("sources"), list):
        changed["sources"] = [
            change_keys(source, ("uri", "labels_uri")) for source in document["sources"]
        ]
    changed["model"] = change_keys(document.get("model"), ("id",))
    changed["scorer"] = change_scorer(document.get("scorer", {}))
    if isinstance(document.get("further_scorers"), list):
        changed["further_scorers"] = [
            change_scorer(scorer) for scorer in document["further_scorers"]
        ]
    benchmark = document.get("benchmark")
    if isinstance(benchmark, dict) and isinstance(benchmark.get("tasks"), list):
        changed["benchmark"] = benchmark | {
            "tasks": [
                change(item) if isinstance(item, str) else item for item in benchmark["tasks"]
            ]
        }
    if isinstance(document.get("scorer_quality"), dict):
        changed["scorer_quality"] = change_keys(document["scorer_quality"], ("functional_cases",))
    if isinstance(document.get("components"), dict):
        changed["components"] = change_keys(document["components"], ("lexicon",))
    return changed


def _apply_override(document: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place; values are YAML, list items are addressed by number."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise SettingsError(
            f"--set {override!r}: expected key=value, e.g. --set generation.n_samples=5."
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(
            f"{name_option(path)}: expected a value in YAML, found: "
            f"{getattr(error, 'problem', None) or 'none'}. Put text with : or [ in quotes."
        ) from error
    section: Any = document
    for key in keys[:-1]:
        section = _enter(section, key, path)
    if isinstance(section, list):
        section[_index(section, keys[-1], path)] = value
    else:
        section[keys[-1]] = value


def _enter(section: Any, key: str, path: str) -> Any:
    if isinstance(section, list):
        return section[_index(section, key, path)]
    if section.get(key) is None:
        section[key] = {}
    if not isinstance(section[key], dict | list):
        raise SettingsError(f"{name_option(path)}: {key!r} is a single value and has no parts.")
    return section[key]


def _index(section: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(section):
        raise SettingsError(
            f"{name_option(path)}: expected a list position 0 to {len(section) - 1}, found {key!r}."
        )
    return int(key)
