"""The diagnosis names what is missing and raises nothing."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from eigenshift.base.errors import ScorerError
from eigenshift.base.findings import Finding, State
from eigenshift.benchmarks import tasks
from eigenshift.model import device_maps
from eigenshift.readiness import diagnosis, preflight
from eigenshift.readiness.diagnosis import BAD_PAIRS, check_pair, diagnose
from eigenshift.settings import (
    Backend,
    RefreshSettings,
    ScorerSettings,
    SourceSettings,
    parse_settings,
)
from eigenshift.toxicity.scorer_quality import TRAINING_NAME, Quality
from eigenshift.toxicity.scorers import detoxify_checkpoint
from eigenshift.toxicity.scorers.detoxify_checkpoint import Release
from tests.support.benchmark_tasks import EVERYDAY
from tests.support.hostile_files import make_workbook
from tests.support.linear_scorers import make_folder


def make_settings(folder: Path, model: str, **scorer: Any) -> RefreshSettings:
    """Settings whose sources lie in a folder; `scorer` and `components` may be whole sections."""
    more = {name: scorer.pop(name) for name in ("scorer", "components") if name in scorer}
    return parse_settings(
        {
            "store": str(folder / "store"),
            "model": {"id": model},
            "sources": [
                {"name": "comments", "format": "jigsaw", "uri": str(folder / "comments.csv")},
                {"name": "prompts", "format": "real_toxicity_prompts", "uri": str(folder / "p*")},
                {"name": "neutral", "format": "sentences", "uri": str(folder / "neutral.csv")},
            ],
            "scorer": scorer,
            "execution": {"device": "cpu"},
            **more,
        },
        "test",
    )


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    """Findings by what was looked at."""
    return {finding.name: finding for finding in findings}


def find_without_remedy(findings: list[Finding]) -> list[Finding]:
    """Those that are not well and do not say what to do, by themselves or as an error's message."""
    return [
        finding
        for finding in findings
        if finding.state is not State.ok and not finding.remedy and "expected" not in finding.detail
    ]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with the three source files."""
    rows = {
        "comments.csv": "comment_text,toxic\na cup of tea,0\n",
        "prompts.jsonl": '{"prompt": {"text": "A cup of", "toxicity": 0.1}}\n',
        "neutral.csv": "text\nA cup of tea.\n",
    }
    for name, content in rows.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_machine_is_described_without_settings() -> None:
    """Python, packages, cores, memory, GPU and disk are looked at; none of them has to be good."""
    found = by_name(diagnose(None))
    assert {"Python", "packages", "processor", "memory", "GPU", "disk"} <= set(found)
    assert found["Python"].is_fine
    assert "torch" in found["packages"].detail
    assert all(finding.detail for finding in found.values())


def test_good_settings_are_fine(sources: Path, tiny_model_folder: Path) -> None:
    """Everything a run needs is found, and the store's folder is not made."""
    found = by_name(diagnose(make_settings(sources, str(tiny_model_folder))))
    for name in ("store", "source comments", "source prompts", "source neutral", "model", "device"):
        assert found[name].is_fine, found[name]
    assert found["model in memory"].is_fine
    assert "needs about" in found["model in memory"].detail
    assert not (sources / "store").exists()


def test_a_source_that_no_format_reads_is_told(sources: Path, tiny_model_folder: Path) -> None:
    """By what it is, before a run reads a row of it."""
    settings = make_settings(sources, str(tiny_model_folder))
    path = Path(settings.sources[0].uri)
    path.write_bytes(make_workbook())
    found = by_name(diagnose(settings))["source comments"]
    assert not found.is_fine
    assert "a workbook of Excel" in found.detail


def test_a_model_of_no_use_is_reported(sources: Path, tiny_model_folder: Path) -> None:
    """What a model will be loaded as is told; a vision model is refused before a run is started."""
    found = by_name(diagnose(make_settings(sources, str(tiny_model_folder))))
    assert "loads as GPT2LMHeadModel" in found["model"].detail
    folder = sources / "vision"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    found = by_name(diagnose(make_settings(sources, str(folder))))
    assert not found["model"].is_fine
    assert "probably a vision or a speech model" in found["model"].detail


def test_missing_things_are_reported_one_by_one(tmp_path: Path) -> None:
    """Each missing file is a finding of its own, with what to do."""
    missing = str(tmp_path / "nothing")
    found = by_name(diagnose(make_settings(tmp_path, missing, checkpoint=missing)))
    for name in (
        "source comments",
        "source prompts",
        "model",
        "model in memory",
        "scorer detoxify",
    ):
        assert not found[name].is_fine
        assert "Check" in found[name].detail


def test_whatever_is_not_well_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, or because it is an error's message, which ends with the remedy."""
    for name in ("MIN_MEMORY_BYTES", "MIN_FREE_BYTES"):
        monkeypatch.setattr(diagnosis, name, 1 << 60)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = diagnose(make_settings(tmp_path, "owner/none", checkpoint=str(tmp_path / "nothing")))
    states = {finding.name: finding.state for finding in found}
    assert states["memory"] is states["disk"] is states["store"] is states["hub"] is State.warning
    assert states["source comments"] is states["model"] is states["scorer detoxify"] is State.no
    assert find_without_remedy(found) == []


def test_a_store_alone_is_looked_at(tmp_path: Path) -> None:
    """Without settings, as `doctor --store` does."""
    (tmp_path / "file").write_text("a")
    assert "store" not in by_name(diagnose(None))
    assert by_name(diagnose(None, str(tmp_path / "new")))["store"].state is State.ok
    assert by_name(diagnose(None, str(tmp_path / "file")))["store"].state is State.no


def test_a_data_set_that_the_hub_did_not_resolve_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only what is cached could be read."""
    columns = {"text": "text", "label": "toxic"}
    source = SourceSettings(
        name="far", format="huggingface", uri="owner/data", columns=columns, split="train"
    )
    for commit, state in ((None, State.warning), ("0" * 40, State.ok)):
        monkeypatch.setattr(diagnosis, "resolve_commit", lambda _, commit=commit: commit)
        finding = diagnosis.check_source(source)
        assert finding.state is state
        assert find_without_remedy([finding]) == []


def test_a_scorer_to_be_downloaded_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the address and what to do without a network; an address that is gone is a no."""
    release = Release("http://far.example/weights.ckpt", tmp_path / "weights.ckpt")
    monkeypatch.setattr(detoxify_checkpoint, "find_release", lambda _: release)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(preflight, "ask_server", lambda _: ("answers", 200))
    finding = diagnosis.check_scorer(ScorerSettings())
    assert finding.state is State.warning
    assert release.url in finding.detail
    assert "scorer.checkpoint" in finding.remedy
    monkeypatch.setattr(preflight, "ask_server", lambda _: ("answers with status 404", 404))
    with pytest.raises(ScorerError, match="status 404"):
        diagnosis.check_scorer(ScorerSettings())


def test_missing_public_data_and_models_are_told_where_to_get(tmp_path: Path) -> None:
    """Of the formats of public data sets their page; of a model's folder the command."""
    model = str(tmp_path / "smollm2")
    found = by_name(diagnose(make_settings(tmp_path, model)))
    assert "kaggle.com" in found["source comments"].detail
    assert "real-toxicity-prompts" in found["source prompts"].detail
    assert "data/README.md" in found["source neutral"].detail
    assert f"`eigenshift fetch-model smollm2 --out {model}` makes it" in found["model"].detail


def test_checkpoint_that_could_run_code_is_reported(sources: Path, tiny_model_folder: Path) -> None:
    """A pickled checkpoint is not opened, and the finding says so."""
    checkpoint = sources / "classifier.ckpt"
    checkpoint.write_bytes(pickle.dumps(Path, protocol=2))
    settings = make_settings(sources, str(tiny_model_folder), checkpoint=str(checkpoint))
    finding = by_name(diagnose(settings))["scorer detoxify"]
    assert not finding.is_fine
    assert "weights only" in finding.detail


def test_a_linear_scorer_is_loaded_and_tells_its_quality(
    sources: Path, tiny_model_folder: Path
) -> None:
    """A fetched one has none; a missing one is told how to make, and no hub is asked for it."""
    scorer = make_folder(sources / "scorer")

    def look(model: str) -> Finding:
        settings = make_settings(sources, str(tiny_model_folder))
        linear = ScorerSettings.model_validate({"kind": "linear", "model": model})
        return by_name(diagnose(settings.model_copy(update={"scorer": linear})))["scorer linear"]

    assert look(str(scorer)).detail.startswith(f"{scorer}: loads as linear, ")
    quality = Quality(800, 200, 200, 50, 0.9612, 0.94, 0.98, 0.95, 0.75, 0.02)
    (scorer / TRAINING_NAME).write_text(json.dumps({"quality": asdict(quality)}))
    found = look(str(scorer))
    assert found.is_fine
    assert "held-out AUROC 0.961 [0.940, 0.980] on 200 texts (50 toxic)" in found.detail
    missing = look("owner/name")
    assert not missing.is_fine
    assert "train-scorer" in missing.detail


def test_functional_cases_are_read(sources: Path, tiny_model_folder: Path) -> None:
    """How many there are, or what is wrong with the file; without any nothing is said."""
    settings = make_settings(sources, str(tiny_model_folder))
    assert "functional cases" not in by_name(diagnose(settings))
    path = sources / "cases.csv"
    quality = settings.scorer_quality.model_copy(update={"functional_cases": str(path)})
    settings = settings.model_copy(update={"scorer_quality": quality})
    assert not by_name(diagnose(settings))["functional cases"].is_fine
    path.write_text("text,label,functionality\na garden,0,plain\na kettle,0,plain\n")
    finding = by_name(diagnose(settings))["functional cases"]
    assert finding.is_fine
    assert "2 cases of 1 functionalities" in finding.detail


def test_store_below_a_file_is_reported(sources: Path, tiny_model_folder: Path) -> None:
    """A store that cannot be made is found out before a run."""
    (sources / "store").write_text("a file")
    finding = by_name(diagnose(make_settings(sources, str(tiny_model_folder))))["store"]
    assert not finding.is_fine


def test_existing_and_remote_stores_are_tried_out(tmp_path: Path) -> None:
    """An object is written, read back and removed."""
    assert diagnosis.check_store(str(tmp_path)).is_fine
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert diagnosis.check_store("memory://diagnosis").is_fine


def test_unknown_scheme_is_reported(tmp_path: Path, tiny_model_folder: Path) -> None:
    """A URL nobody can open is a finding."""
    settings = make_settings(tmp_path, str(tiny_model_folder))
    settings = settings.model_copy(update={"store": "nosuch://bucket"})
    assert not by_name(diagnose(settings))["store"].is_fine


@pytest.mark.parametrize(
    ("place", "prefect", "other", "is_fine"),
    [
        (0, "3.8.8", "0.150.9", True),
        (0, "3.8.8", "0.151.0", False),
        (0, "3.8.8", "0.165.0", False),
        (0, "3.9.1", "0.165.0", True),
        (0, None, "0.165.0", True),
        (1, "3.8.8", "2.0.58", True),
        (1, "3.8.8", "2.1.0b1", False),
        (1, "3.9.1", "2.1.9", True),
    ],
)
def test_bad_pairs_of_versions_are_known(
    place: int, prefect: str | None, other: str, is_fine: bool
) -> None:
    """Prefect 3.8 fails with newer FastAPI and, silently, with newer SQLAlchemy."""
    finding = check_pair(BAD_PAIRS[place], prefect, other)
    assert finding.is_fine is is_fine
    assert is_fine or "pip install" in finding.remedy


def test_model_on_the_hub_is_asked_for_not_downloaded(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model that is not here yet the hub is asked whether it has it, and no more."""

    def refuse(*_: object, **options: object) -> str:
        assert options["local_files_only"] is True
        raise LocalEntryNotFoundError("not in the cache")

    class Hub:
        """Answers with a commit."""

        def model_info(self, *_: object, **__: object) -> Hub:
            """Return itself as the information."""
            return self

        sha = "0" * 40

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    found = by_name(diagnose(make_settings(sources, "owner/name")))
    assert "the first run downloads it" in found["model"].detail
    assert found["model"].state is found["model in memory"].state is State.warning
    assert "hf download owner/name" in found["model"].remedy


def divide(settings: RefreshSettings, **placement: Any) -> RefreshSettings:
    """The same settings, the model divided."""
    execution = settings.execution.model_copy(update=placement)
    return settings.model_copy(update={"execution": execution})


def test_where_a_divided_model_would_be_is_told(sources: Path, tiny_model_folder: Path) -> None:
    """Bytes and modules of each place, by the configuration; what is slow; what is not there."""
    settings = make_settings(sources, str(tiny_model_folder))
    auto = divide(settings, device_map="auto", max_memory={"cpu": "95KB"})
    finding = by_name(diagnose(auto))["model in memory"]
    assert finding.is_fine
    assert re.search(r"cpu \d+ KiB of .* free \(transformer\.wte, .*lm_head", finding.detail)
    assert re.search(r"; disk \d+ KiB \(.*transformer\.h", finding.detail)
    assert "read from disk in every pass" in finding.detail
    whole = divide(settings, device_map="auto")
    detail = by_name(diagnose(whole))["model in memory"].detail
    assert "free (all)" in detail
    assert "in every pass" not in detail
    unknown = divide(settings, device_map={"": "cpu", "model.layers.0": "disk"})
    finding = by_name(diagnose(unknown))["model in memory"]
    assert not finding.is_fine
    assert "expected modules of GPT2LMHeadModel" in finding.detail


def test_too_little_memory_is_told_with_what_a_division_would_do(
    sources: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an undivided model where its parts could be, of a divided one which place is short."""
    for module in (diagnosis, device_maps):
        monkeypatch.setattr(module, "measure_free_memory", lambda: 120_000)
    settings = make_settings(sources, str(tiny_model_folder))
    finding = by_name(diagnose(settings))["model in memory"]
    assert not finding.is_fine
    assert re.search(r"execution\.device_map: auto \(cpu \d+ KiB.*; disk", finding.remedy)
    given = divide(settings, device_map={"": "cpu", "transformer.ln_f": "disk"})
    finding = by_name(diagnose(given))["model in memory"]
    assert not finding.is_fine
    assert "too much on cpu" in finding.detail


def test_a_divided_model_on_the_hub_is_told_by_its_configuration(
    sources: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That file alone is fetched."""

    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not in the cache")

    asked = []

    def fetch(model_id: str, name: str, revision: str | None) -> str:
        asked.append((model_id, name, revision))
        return str(tiny_model_folder / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    settings = divide(make_settings(sources, "owner/name"), device_map="auto")
    finding = diagnosis.check_model_memory(settings.model, settings.execution)
    assert finding.is_fine, finding
    assert "free (all)" in finding.detail
    assert asked == [("owner/name", "config.json", None)]


@pytest.mark.parametrize("prefix", ["module.", "student."])
def test_weights_that_would_be_random_are_reported(
    sources: Path, tiny_model_folder: Path, prefix: str
) -> None:
    """Whatever stands before their names: a run would find out as late as it loads the model."""
    folder = Path(shutil.copytree(tiny_model_folder, sources / "model"))
    path = folder / "model.safetensors"
    tensors = {f"{prefix}{key}": value for key, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    finding = by_name(diagnose(make_settings(sources, str(folder))))["model"]
    assert not finding.is_fine
    assert f"'{prefix}'" in finding.detail


def test_an_adapter_beside_the_model_is_reported(sources: Path, tiny_model_folder: Path) -> None:
    """Before a run, with the remedy."""
    folder = Path(shutil.copytree(tiny_model_folder, sources / "model"))
    (folder / "adapter_config.json").write_text("{}")
    finding = by_name(diagnose(make_settings(sources, str(folder))))["model"]
    assert not finding.is_fine
    assert "merge_and_unload" in finding.detail


def test_the_hub_is_looked_for_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline by setting is the user's choice; no answer is to be minded, with what to do."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = diagnosis.check_hub(None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    silent = diagnosis.check_hub(None)
    assert offline.state is State.ok
    assert "HF_HUB_OFFLINE" in offline.detail
    assert silent.state is State.warning
    assert "no answer" in silent.detail
    assert "give folders instead" in silent.remedy


def test_an_engine_that_is_not_installed_is_a_finding(tmp_path: Path) -> None:
    """Where the settings ask for one; our own loop needs nothing."""
    settings = make_settings(tmp_path, str(tmp_path / "none"))
    assert "generation" not in by_name(diagnose(settings))
    asked = settings.generation.model_copy(update={"backend": Backend.vllm})
    missing = by_name(diagnose(settings.model_copy(update={"generation": asked})))["generation"]
    assert not missing.is_fine
    assert "generation.backend: transformers" in missing.detail


def test_benchmark_tasks_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there is a finding, and so is that there is no harness."""
    settings = make_settings(tmp_path, str(tmp_path / "none"))

    def look(*names: str) -> Finding | None:
        asked = settings.benchmark.model_copy(update={"tasks": names})
        found = diagnose(settings.model_copy(update={"benchmark": asked}))
        return by_name(found).get("benchmark")

    assert look() is None
    here, gone = look(str(EVERYDAY)), look(f"{tmp_path}/none")
    assert here is not None
    assert here.is_fine
    assert "lm-eval" in here.detail
    assert gone is not None
    assert not gone.is_fine
    monkeypatch.setattr(tasks, "PACKAGE", "no-such-package")
    missing = look(str(EVERYDAY))
    assert missing is not None
    assert "pip install 'eigenshift[benchmark]'" in missing.detail


def test_the_network_is_left_alone_where_everything_is_in_folders(
    sources: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and scorer local: no connection is opened, whatever the environment says of the hub."""
    words = sources / "words.txt"
    words.write_text("grubnoggin\n")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    opened: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        opened.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    settings = make_settings(
        sources,
        str(tiny_model_folder),
        scorer={"kind": "lexicon", "words": str(words)},
        components={"positions": "occlusion"},
    )
    found = by_name(diagnose(settings))
    assert opened == []
    assert "not asked" in found["hub"].detail
    assert found["scorer lexicon"].is_fine
    assert found["model"].is_fine


def test_what_is_on_the_hub_is_named(sources: Path, tiny_model_folder: Path) -> None:
    """A model, a classifier and a dataset by their ids; Detoxify's tokenizer without a folder."""
    local = make_settings(sources, str(tiny_model_folder), config_folder=str(sources))
    assert diagnosis.list_on_hub(local) == []
    remote = make_settings(sources, "owner/name")
    assert diagnosis.list_on_hub(remote) == ["model", "scorer detoxify"]
    judged = make_settings(
        sources,
        str(tiny_model_folder),
        scorer={"kind": "classifier", "model": "owner/judge", "name": "judge"},
    )
    assert diagnosis.list_on_hub(judged) == ["scorer judge"]


def test_detoxify_that_cannot_be_had_is_not_fine(
    sources: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither here nor to be downloaded: said before a run finds out after generating."""
    release = Release("http://127.0.0.1:9/weights.ckpt", sources / "checkpoints" / "weights.ckpt")
    monkeypatch.setattr(detoxify_checkpoint, "find_release", lambda _: release)
    settings = make_settings(sources, str(tiny_model_folder)).scorer
    for is_offline, reason in ((True, "HF_HUB_OFFLINE"), (False, "no answer")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
        with pytest.raises(ScorerError, match=r"scorer\.checkpoint") as refused:
            diagnosis.check_scorer(settings)
        assert reason in str(refused.value)


def test_detoxify_that_is_here_is_opened(
    sources: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were downloaded once and are damaged are found out."""
    path = sources / "weights.ckpt"
    path.write_bytes(b"cut short")
    release = Release(path.as_uri(), path)
    monkeypatch.setattr(detoxify_checkpoint, "find_release", lambda _: release)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(sources / "hub"))
    with pytest.raises(ScorerError):
        diagnosis.check_scorer(make_settings(sources, str(tiny_model_folder)).scorer)
