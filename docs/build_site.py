"""Build the documentation site: all documents as they lie, and the library's reference.

`python docs/build_site.py` writes `.site/html`; a broken link or anchor fails. Documents are copied
to `.site/docs` in the layout of the repository, so their links to each other hold there too; the
reference has a page for each room, made from docstrings without importing anything. A notebook
lies there as it is, and as a page.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
OUT = ROOT / ".site"
DOCUMENTS = {
    "Home": "README.md",
    "How it works": "docs/how-it-works.md",
    "Use": {
        "Python and notebooks": "docs/python.md",
        "Quickstart": "docs/quickstart.ipynb",
        "Settings": "docs/settings.md",
        "The store": "docs/storage.md",
        "Audit and reports": "docs/audit.md",
        "Capability": "docs/capability.md",
        "Verdicts": "docs/verdicts.md",
        "Protections": "docs/protections.md",
        "Exports": "docs/exports.md",
        "Architectures": "docs/architectures.md",
        "Devices": "docs/devices.md",
        "Quantised models": "docs/quantisation.md",
        "Scale": "docs/scale.md",
    },
    "Operate": {"Deployments": "deployments/README.md", "Runbook": "docs/runbook.md"},
    "Look up": {
        "Names": "docs/naming.md",
        "Tables": "docs/tables.md",
        "Views": "docs/views.md",
        "Benchmarks": "docs/benchmarks.md",
        "Results on a real model": "docs/results.md",
        "Demo data": "data/README.md",
    },
    "Develop": {
        "Contributing": "CONTRIBUTING.md",
        "Code of conduct": "CODE_OF_CONDUCT.md",
        "Security": "SECURITY.md",
        "Decisions": "docs/decisions/README.md",
        "Changelog": "CHANGELOG.md",
    },
}
COPIED = ("*.md", "*.png", "*.svg", "*.ipynb")
FOLDERS = ("docs", "data", "deployments")


def build() -> int:
    """Write the site; the exit code of mkdocs."""
    shutil.rmtree(OUT, ignore_errors=True)
    pages = OUT / "docs"
    pages.mkdir(parents=True)
    for path in _list_documents():
        target = pages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        if path.suffix == ".ipynb":
            text, _ = MarkdownExporter().from_filename(str(path))
            target.with_suffix(".md").write_text(text, encoding="utf-8")
    for place in (
        "LICENSE",
        "CITATION.cff",
        "data/sources.yaml",
        "docs/decisions/0044-coupling.png",
    ):
        if ROOT.joinpath(place).is_file():
            shutil.copy(ROOT / place, pages / place)
    reference = _write_reference(pages)
    config = ROOT.joinpath("docs", "site.yml").read_text(encoding="utf-8")
    nav = [*_list_pages(DOCUMENTS), {"Reference": reference}]
    made = f"docs_dir: docs\nsite_dir: html\nnav:\n{_to_yaml(nav, 1)}"
    OUT.joinpath("mkdocs.yml").write_text(f"{config}{made}", encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run([*command, "-f", str(OUT / "mkdocs.yml")], check=False).returncode


def _list_documents() -> list[Path]:
    found = list(ROOT.glob("*.md"))
    for folder in FOLDERS:
        for pattern in COPIED:
            found += ROOT.joinpath(folder).rglob(pattern)
    return sorted(set(found))


def _write_reference(pages: Path) -> list[Any]:
    """One page per room, and one of what stands outside them; their places in the navigation."""
    library = ROOT / "eigenshift"
    folder = pages / "reference"
    folder.mkdir()
    flat = [f"eigenshift.{path.stem}" for path in sorted(library.glob("[a-z]*.py"))]
    rooms = {path.parent.name: _list_modules(path.parent) for path in library.glob("*/__init__.py")}
    for name, modules in {"outside the rooms": flat, **rooms}.items():
        text = "\n\n".join(f"::: {module}" for module in modules)
        page = folder / f"{name.replace(' ', '-')}.md"
        page.write_text(f"# {name}\n\n{text}\n", encoding="utf-8")
    return [{path.stem: str(path.relative_to(pages))} for path in sorted(folder.glob("*.md"))]


def _list_modules(room: Path) -> list[str]:
    found = []
    for path in sorted(room.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(found)


def _list_pages(pages: dict[str, Any]) -> list[Any]:
    return [
        {title: _name_page(place) if isinstance(place, str) else _list_pages(place)}
        for title, place in pages.items()
    ]


def _name_page(place: str) -> str:
    """Where a document is a page; a notebook is written as one."""
    return str(Path(place).with_suffix(".md"))


def _to_yaml(pages: list[Any], depth: int) -> str:
    lines = []
    for page in pages:
        ((title, place),) = page.items()
        nested = "" if isinstance(place, str) else "\n" + _to_yaml(place, depth + 1).rstrip("\n")
        lines.append(f"{'  ' * depth}- {title}: {place if isinstance(place, str) else ''}{nested}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(build())
