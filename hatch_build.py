"""What a built package has that the clone has not: names of its own, the demo inside, links.

Hatchling runs this for `pip install`, for a wheel and for an sdist; an editable install
(`make install`) stays the clone, but for its links. docs/decisions/0078 says why. The wheel holds:

- `flows/` and `tasks/` as the packages `eigenshift_flows` and `eigenshift_tasks`: the names of the
  folders would stand in the way of everybody else's. Their import statements are renamed with them,
  and so is the script; nothing else of the code changes.
- `data/demo` and `data/benchmarks` below `eigenshift/bundled/`, and presets that find them there.
  What presets name outside of them (`.models`, `data/real`) is looked for in the working folder.

The long description is the README with links that lead somewhere: absolute ones below
EIGENSHIFT_REPOSITORY_URL, which who publishes sets, e.g. https://github.com/OWNER/eigenshift;
plain words without it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NAMES = {"flows": "eigenshift_flows", "tasks": "eigenshift_tasks"}
"""Folder of the clone -> package of the wheel."""
DATA = ("data/demo", "data/benchmarks")
"""What comes along."""
BUNDLED = "bundled"
"""Where, below `eigenshift/`."""
PRESETS = "eigenshift/settings/presets"
UP_TO_ROOT = "../../../"
"""From a preset to the clone's root."""
UP_TO_LIBRARY = "../../"
PAPER = "https://arxiv.org/abs/2509.16660"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")
"""A link of Markdown to a file of the clone."""


class WheelHook(BuildHookInterface[Any]):
    """Adds to a wheel what is not in it as it lies in the clone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is written; `version` is "editable" for `pip install -e`."""
        if version == "editable":
            return
        root = Path(self.root)
        self.made = Path(tempfile.mkdtemp(prefix="eigenshift-wheel-"))
        included: dict[str, str] = build_data["force_include"]
        for folder, name in NAMES.items():
            for path in sorted(root.joinpath(folder).rglob("*.py")):
                target = f"{name}/{path.relative_to(root / folder).as_posix()}"
                place = f"{folder}/{path.name}"
                included[self._make(target, rename_imports(path.read_text("utf-8"), place))] = (
                    target
                )
        for path in sorted(root.joinpath(PRESETS).glob("*.yaml")):
            target = f"{PRESETS}/{path.name}"
            included[self._make(target, move_places(path.read_text("utf-8")))] = target
        for folder in DATA:
            included[str(root / folder)] = f"eigenshift/{BUNDLED}/{folder}"
        scripts = self.metadata.core.scripts
        scripts.update({script: rename(reference) for script, reference in scripts.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when the wheel is written."""
        if version != "editable":
            shutil.rmtree(self.made)

    def _make(self, target: str, text: str) -> str:
        path = self.made / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)


class MetadataHook(MetadataHookInterface):
    """Fills in the long description and the links."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called once per build; `metadata` is the table `project` of pyproject.toml."""
        home = os.environ.get("EIGENSHIFT_REPOSITORY_URL", "").rstrip("/")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": lead_links(text, home, metadata["version"]),
        }
        metadata["urls"] = list_links(home, metadata["version"])


def rename(reference: str) -> str:
    """A dotted name as the wheel has it: `flows.refresh` -> `eigenshift_flows.refresh`."""
    first, dot, rest = reference.partition(".")
    return f"{NAMES.get(first, first)}{dot}{rest}"


def rename_imports(source: str, place: str) -> str:
    """A module's text with the packages it imports named as in the wheel.

    Raises:
        ValueError: It imports one of them as a plain name (`import flows.refresh`), whose uses
            would have to be renamed as well.
    """
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            bare = [alias.name for alias in node.names if rename(alias.name) != alias.name]
            if bare:
                raise ValueError(
                    f"{place}:{node.lineno}: expected `from {bare[0]} import ...`, found `import "
                    f"{bare[0]}`. The wheel has this package by another name (hatch_build.py)."
                )
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            line = lines[node.lineno - 1]
            head = f"from {node.module} "
            at = line.index(head, node.col_offset)
            renamed = f"from {rename(node.module)} "
            lines[node.lineno - 1] = line[:at] + renamed + line[at + len(head) :]
    return "\n".join(lines)


def move_places(preset: str) -> str:
    """A preset's text with the paths that hold in the wheel."""
    for folder in DATA:
        preset = preset.replace(f"{UP_TO_ROOT}{folder}", f"{UP_TO_LIBRARY}{BUNDLED}/{folder}")
    return re.sub(rf"(?<![./]){re.escape(UP_TO_ROOT)}", "", preset)


def lead_links(text: str, home: str, version: str) -> str:
    """Markdown whose links to files lead to the repository at `home`, or are words without one."""

    def lead(found: re.Match[str]) -> str:
        picture, words, place = found.groups()
        if not home:
            return "" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({home}/{kind}/v{version}/{place})"

    return LINK.sub(lead, text)


def list_links(home: str, version: str) -> dict[str, str]:
    """The links of the package's page."""
    own = {
        "Repository": home,
        "Documentation": f"{home}/blob/v{version}/docs/how-it-works.md",
        "Changelog": f"{home}/blob/v{version}/CHANGELOG.md",
        "Issues": f"{home}/issues",
        "Security": f"{home}/security/policy",
    }
    return (own if home else {}) | {"Paper": PAPER}
