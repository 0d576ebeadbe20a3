"""What a built package holds: names of its own, the clone's code, the demo, entry points, links.

The wheel is built here by hatchling and unpacked; `.ci/check_demo` installs it and the sdist into
fresh environments and runs the demo there.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDERS = {"flows": "eigenshift_flows", "tasks": "eigenshift_tasks", "eigenshift": "eigenshift"}
IMPORT = re.compile(r"^(\s*from )(eigenshift_)(flows|tasks)\b")
HOME = "https://example.org/owner/eigenshift"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("package")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


@pytest.fixture(scope="module")
def hook() -> Iterator[ModuleType]:
    """`hatch_build.py`, which stands in the clone's root."""
    sys.path.insert(0, str(ROOT))
    try:
        import hatch_build

        yield hatch_build
    finally:
        sys.path.remove(str(ROOT))


def run_installed(wheel: Path, script: str, folder: Path) -> str:
    """What a script prints where only the wheel is, in a folder of its own."""
    words = [sys.executable, "-c", f"import sys; sys.path[:1] = [{str(wheel)!r}]\n{script}"]
    found = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_wheel_takes_no_names_but_its_own(wheel: Path) -> None:
    """No `flows`, no `tasks`, no `data` in everybody's site-packages."""
    names = {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"}
    assert names == {"eigenshift", "eigenshift_flows", "eigenshift_tasks"}


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_the_wheel_holds_the_clones_code(folder: str, wheel: Path) -> None:
    """Every module, line by line, but for the names of packages in import statements."""
    paths = sorted(ROOT.joinpath(folder).rglob("*.py"))
    built = wheel / FOLDERS[folder]
    assert {path.relative_to(built) for path in built.rglob("*.py")} == {
        path.relative_to(ROOT / folder) for path in paths
    }
    for path in paths:
        text = built.joinpath(path.relative_to(ROOT / folder)).read_text(encoding="utf-8")
        back = [IMPORT.sub(r"\1\3", line) for line in text.split("\n")]
        assert back == path.read_text(encoding="utf-8").split("\n"), path.name


def test_no_module_of_the_wheel_imports_by_the_clones_names(wheel: Path) -> None:
    """As a stranger would find out: ModuleNotFoundError, or somebody else's `tasks`."""
    roots = set()
    for path in wheel.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
    assert {"eigenshift_flows", "eigenshift_tasks"} <= roots
    assert not {"flows", "tasks"} & roots


def test_files_that_are_no_code_come_along(wheel: Path) -> None:
    """SQL, templates, presets, word lists, the mark of types."""
    library = ROOT / "eigenshift"
    for path in library.rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        assert wheel.joinpath("eigenshift", path.relative_to(library)).is_file(), path


def test_the_demo_is_found_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """All its files, below the installed package, and byte for byte those of the clone."""
    script = (
        "import json\n"
        "from eigenshift.settings import load_preset\n"
        "found = load_preset('demo')\n"
        "print(json.dumps([found.model.id, found.scorer.checkpoint, found.scorer.config_folder,\n"
        "    *(source.uri for source in found.sources)]))\n"
    )
    places = [Path(place) for place in json.loads(run_installed(wheel, script, tmp_path))]
    bundled = wheel / "eigenshift" / "bundled"
    assert len(places) == 7
    assert all(place.exists() and place.is_relative_to(bundled) for place in places)
    for path in ROOT.joinpath("data", "demo").rglob("*"):
        if path.is_file():
            assert bundled.joinpath(path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_the_other_presets_look_into_the_working_folder(wheel: Path, tmp_path: Path) -> None:
    """For what is not bundled: a path up from the installed package would lead nowhere."""
    script = (
        "from eigenshift.settings import list_presets, load_preset\n"
        "for name in list_presets():\n"
        "    found = load_preset(name)\n"
        "    print(found.model.id, *(source.uri for source in found.sources),\n"
        "        *found.benchmark.tasks)\n"
    )
    places = set(run_installed(wheel, script, tmp_path).split())
    assert {".models/smollm2", "data/real/jigsaw/train.csv"} <= places
    bundled = str(wheel / "eigenshift" / "bundled" / "data")
    assert not [place for place in places if "/../" in place or place.startswith("..")]
    absolute = {place for place in places if place.startswith("/")}
    assert all(place.startswith(bundled) and Path(place).exists() for place in absolute)
    assert f"{bundled}/benchmarks/everyday" in absolute


def test_the_script_is_in_the_wheel(wheel: Path) -> None:
    """`eigenshift` starts a function that is there."""
    (file,) = wheel.glob("*.dist-info/entry_points.txt")
    assert file.read_text().split() == [
        *("[console_scripts]", "eigenshift", "=", "eigenshift_flows.command_line:main")
    ]
    text = wheel.joinpath("eigenshift_flows", "command_line.py").read_text(encoding="utf-8")
    assert re.search(r"^def main\(", text, re.MULTILINE)


def test_the_deployments_entry_points_are_in_the_wheel_too(wheel: Path) -> None:
    """With EIGENSHIFT_FLOWS=eigenshift_flows; the clone's are in `tests/test_deployments.py`."""
    document = yaml.safe_load(ROOT.joinpath("deployments", "prefect.yaml").read_text())
    for item in document["deployments"]:
        package, module, flow = item["entrypoint"].split(".")
        assert package == "{{ $EIGENSHIFT_FLOWS }}"
        text = wheel.joinpath("eigenshift_flows", f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^def {flow}\(", text, re.MULTILINE)


@pytest.mark.slow
def test_flows_load_from_the_wheel_beside_packages_of_the_old_names(
    wheel: Path, tmp_path: Path
) -> None:
    """Prefect loads each by its entry point; a user's own `flows` and `tasks` stay the user's."""
    for name in ("flows", "tasks"):
        tmp_path.joinpath(f"{name}.py").write_text("MINE = True\n")
    script = (
        "import os\n"
        f"sys.path.insert(1, {str(tmp_path)!r})\n"
        f"os.environ['PREFECT_HOME'] = {str(tmp_path / 'prefect')!r}\n"
        "import flows, tasks\n"
        "import eigenshift_flows.serve\n"
        "from prefect.flows import load_flow_from_entrypoint\n"
        "for name in ('refresh', 'watch', 'compare'):\n"
        "    flow = load_flow_from_entrypoint(f'eigenshift_flows.{name}.{name}')\n"
        "    print(flow.name, flow.fn.__module__)\n"
        "assert flows.MINE and tasks.MINE\n"
        "import eigenshift_flows.command_line\n"
        "eigenshift_flows.command_line.main(['--help'])\n"
    )
    shown = run_installed(wheel, script, tmp_path)
    for name in ("refresh", "watch", "compare"):
        assert f"{name} eigenshift_flows.{name}" in shown
    assert "demo" in shown


def test_the_long_description_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    """Built without an address, links to files of the clone are plain words."""
    (file,) = wheel.glob("*.dist-info/METADATA")
    metadata = Parser().parsestr(file.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", str(metadata.get_payload()))
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2509.16660"]
    assert metadata["Author"]


def test_the_readme_lists_every_extra(wheel: Path) -> None:
    """With what it adds, and none that there is not."""
    (file,) = wheel.glob("*.dist-info/METADATA")
    extras = Parser().parsestr(file.read_text(encoding="utf-8")).get_all("Provides-Extra")
    rows = (ROOT / "README.md").read_text(encoding="utf-8").partition("| extra | adds |")[2]
    first = [row.split("|")[1] for row in rows.partition("\n\n")[0].split("\n")[2:]]
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(first))) == sorted(extras or [])


@pytest.mark.parametrize(
    ("source", "renamed"),
    [
        ("from flows.a import b\n", "from eigenshift_flows.a import b\n"),
        ("from flows import (\n    a,\n)\n", "from eigenshift_flows import (\n    a,\n)\n"),
        (
            "def f():\n    from tasks.a import b\n",
            "def f():\n    from eigenshift_tasks.a import b\n",
        ),
        ("'''from flows import x'''\n", "'''from flows import x'''\n"),
        ("from flowserver import a\n", "from flowserver import a\n"),
        (
            "x = '\\x0c\u2028'\nfrom tasks import a",
            "x = '\\x0c\u2028'\nfrom eigenshift_tasks import a",
        ),
        ("import os, eigenshift\n", "import os, eigenshift\n"),
    ],
)
def test_import_statements_are_renamed_and_nothing_else(
    source: str, renamed: str, hook: ModuleType
) -> None:
    """Not in strings, not names that only begin alike."""
    assert hook.rename_imports(source, "x.py") == renamed


@pytest.mark.parametrize("source", ["import flows\n", "import os\nimport tasks.stage as s\n"])
def test_an_import_that_cannot_be_renamed_stops_the_build(source: str, hook: ModuleType) -> None:
    """With its place and what to write instead."""
    with pytest.raises(ValueError, match=r"x\.py:\d: expected `from (flows|tasks)") as caught:
        hook.rename_imports(source, "x.py")
    assert "hatch_build.py" in str(caught.value)


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        ("", "See docs and [p](https://a.b/c), [here](#x). "),
        (
            HOME,
            f"See [docs]({HOME}/blob/v1/docs/audit.md#b) and [p](https://a.b/c), [here](#x). "
            f"![a plot]({HOME}/raw/v1/docs/i.png)",
        ),
    ],
)
def test_links_of_the_readme_lead_to_the_repository(
    home: str, expected: str, hook: ModuleType
) -> None:
    """Pages and pictures differ; absolute links and those within the page stay."""
    text = "See [docs](docs/audit.md#b) and [p](https://a.b/c), [here](#x). ![a plot](docs/i.png)"
    assert hook.lead_links(text, home, "1") == expected


def test_a_published_package_links_to_its_changelog(hook: ModuleType) -> None:
    """Everything below the address that who publishes gives; only the paper without one."""
    assert list(hook.list_links("", "1")) == ["Paper"]
    links = hook.list_links(HOME, "1")
    assert links["Changelog"] == f"{HOME}/blob/v1/CHANGELOG.md"
    assert {"Repository", "Documentation", "Issues", "Paper"} <= links.keys()
