"""A release is repeated from its file: equal, or told what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eigenshift.exporting import export_patch
from eigenshift.ledger.releases import list_releases
from eigenshift.ledger.runs import list_run_ids, read_run
from eigenshift.settings import load_preset
from eigenshift.store.storage import Store
from flows.command_line import main
from tests.flows.conftest import SMALL
from tests.support.small_runs import EASY_BOUNDS, ENOUGH_EVIDENCE

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("prefect_server")]

Reproduce = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Path:
    """A folder with a store that has a release, and the data it was made of."""
    from flows.refresh import run_refresh

    folder = tmp_path_factory.mktemp("released")
    demo = load_preset("demo")
    moved = []
    for place, source in enumerate(demo.sources):
        copy = folder / "data" / Path(source.uri).name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(source.uri, copy)
        moved.append(f"sources.{place}.uri={copy}")
    settings = load_preset(
        "demo", [*SMALL, *ENOUGH_EVIDENCE, *EASY_BOUNDS, *moved, f"store={folder / 'store'}"]
    )
    assert run_refresh(settings).status == "promoted"
    return folder


@pytest.fixture
def reproduce(capsys: pytest.CaptureFixture[str]) -> Reproduce:
    """Run the command; exit code and what it printed on both streams."""

    def reproduce(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["reproduce", *words])
        printed = capsys.readouterr()
        return int(leaving.value.code or 0), printed.out, printed.err

    return reproduce


def find_file(released: Path) -> str:
    """The file that the release wrote."""
    (path,) = (released / "store" / "reproductions").iterdir()
    return str(path)


def test_a_release_is_repeated_from_its_file_alone(released: Path, reproduce: Reproduce) -> None:
    """Everything is done again in a folder of its own: every number is equal, nothing released."""
    code, out, _ = reproduce(find_file(released), "--tolerance", "0")
    assert code == 0, out
    assert out.strip().endswith("all equal.")
    store = Store(str(released / "store"))
    assert len(list_run_ids(store)) == len(list_releases(store)) == 1


def test_a_changed_setting_is_told_by_its_numbers(released: Path, reproduce: Reproduce) -> None:
    """In the store of the release only what the setting redoes is done: other intervals."""
    store = released / "store"
    words = ("--store", str(store), "--set", "evaluation.seed=1", "--json")
    code, out, _ = reproduce(find_file(released), *words)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert code == 1
    assert not found["is_equal"]
    assert "changed here: evaluation.seed=1" in found["notes"]
    numbers = {item["number"] for item in found["differences"] if item["is_beyond"]}
    metrics = {item["metric"] for item in found["differences"]}
    assert numbers >= {"low", "high"}
    assert "toxicity_rate" in metrics
    rates = [item for item in found["differences"] if item["metric"] == "toxicity_rate"]
    assert "value" not in {item["number"] for item in rates}
    run = read_run(Store(str(store)), found["run_id"])
    assert (run.command, run.release) == ("reproduce", None)
    assert len(list_releases(Store(str(store)))) == 1
    redone = {stage.name for stage in run.stages if stage.shards_cached < stage.shards}
    assert redone == {"compare_arms"}


def test_changed_data_is_refused_by_its_digest(released: Path, reproduce: Reproduce) -> None:
    """Before anything is done, with the file's name."""
    path = released / "data" / "sentences.csv"
    before = path.read_bytes()
    path.write_bytes(before + b"The kettle is warm.\n")
    try:
        code, _, err = reproduce(find_file(released))
    finally:
        path.write_bytes(before)
    assert code == 2
    assert "source neutral, sentences.csv: expected sha256" in err
    assert "found 1 difference(s)" in err


def test_an_export_repeats_the_run_from_data_named_anew(
    released: Path, reproduce: Reproduce, tmp_path: Path
) -> None:
    """The export's copy knows no place: without them every file is asked for by name."""
    out = export_patch(str(released / "store"), None, "patch", tmp_path / "out")
    assert str(released) not in (out / "reproduce.json").read_text()
    code, _, err = reproduce(str(out / "reproduce.json"))
    assert code == 2
    assert all(f"source {name}:" in err for name in ("jigsaw", "toxicn", "rtp", "neutral"))
    settings = load_preset("demo")
    places = [
        f"sources.{place}.uri={released / 'data' / Path(source.uri).name}"
        for place, source in enumerate(settings.sources)
    ]
    places += [f"model.id={settings.model.id}", f"scorer.checkpoint={settings.scorer.checkpoint}"]
    places += [f"scorer.config_folder={settings.scorer.config_folder}"]
    words = [word for place in places for word in ("--set", place)]
    # Beside the release nearly all is there already: places enter no fingerprint of its content.
    code, text, _ = reproduce(
        str(out / "reproduce.json"), "--store", str(released / "store"), *words
    )
    assert code == 0, text
    assert "all equal." in text
