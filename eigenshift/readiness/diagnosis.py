"""Tell what this machine and these settings can and cannot do, before a run finds out.

Looks at versions, cores, memory, GPU and disk, and with settings at the store, every source, the
model and the classifier. Reports by three states (`base/findings.py`); never raises for a thing
that is missing, downloads no weights and loads no model. The hub is asked only where the settings
name something on it. What a run itself asks before it starts is `preflight.py`'s, and used here.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import httpx
import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import safe_open

from eigenshift.base.errors import EigenShiftError, ModelError, SettingsError
from eigenshift.base.findings import Finding
from eigenshift.base.machine import count_cores
from eigenshift.benchmarks.tasks import find_version, require_tasks
from eigenshift.datasets.huggingface import resolve_commit
from eigenshift.generation.engines import require_backend
from eigenshift.model.device_maps import CPU, Division, Place, show_modules, show_place
from eigenshift.model.devices import resolve_device
from eigenshift.model.files import identify_model
from eigenshift.model.loading import check_weight_names, find_class_name, find_division
from eigenshift.model.resources import measure_free_memory
from eigenshift.readiness.preflight import (
    ask_server,
    is_on_hub,
    refuse_download,
    require_scorer,
    require_source,
    require_writable,
)
from eigenshift.settings import (
    Backend,
    ModelSettings,
    Placement,
    RefreshSettings,
    ScorerKind,
    ScorerSettings,
    SourceFormat,
    SourceSettings,
)
from eigenshift.store.manifests import describe_versions
from eigenshift.store.source_files import fetch_path, is_folder
from eigenshift.store.storage import Store
from eigenshift.toxicity.functional_cases import read_cases
from eigenshift.toxicity.scorer_quality import describe_quality, read_quality
from eigenshift.toxicity.scorers.loading import load_scorer

PYTHON_VERSIONS = ((3, 10), (3, 14))
"""First supported, first not supported (pyproject.toml)."""
MIN_FREE_BYTES = 2 << 30
MIN_MEMORY_BYTES = 2 << 30
MAKE_ROOM = "Make room: a store takes some GiB (`eigenshift gc` removes what no run needs)."
HUB_TIMEOUT_SECONDS = 10.0
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MEMORY_FACTOR = 1.3
"""What a run needs beside the weights: activations, logits, the head's decomposition."""
BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
FASTER_FIRST = "Download it first to be sure: hf download"
"""Remedy for what a run would download."""
STORED_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4}


@dataclass(frozen=True)
class BadPair:
    """Two installed versions that do not work together: `package` below, `other` at or above."""

    package: str
    release: tuple[int, ...]
    other: str
    from_version: tuple[int, ...]
    consequence: str


BAD_PAIRS = (
    BadPair("prefect", (3, 8), "fastapi", (0, 151), "every flow and the server fail at the start"),
    BadPair(
        "prefect", (3, 8), "sqlalchemy", (2, 1), "schedules never create runs, without an error"
    ),
)
"""docs/decisions/0006-dependency-pins.md."""


def diagnose(settings: RefreshSettings | None, store: str | None = None) -> list[Finding]:
    """Look at this machine and, if there are settings, at everything they name.

    Args:
        settings: Of the run to come, or None.
        store: A store to look at where there are no settings.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", check_python),
        ("packages", check_packages),
        *((f"{pair.package} and {pair.other}", _bind_pair(pair)) for pair in BAD_PAIRS),
        ("processor", check_processor),
        ("memory", check_memory),
        ("GPU", check_gpu),
        ("disk", lambda: check_disk(Path.cwd())),
        ("hub", lambda: check_hub(settings)),
    ]
    if settings is not None:
        checks += _list_settings_checks(settings)
    elif store is not None:
        checks.append(("store", lambda: check_store(store)))
    return [_attempt(name, check) for name, check in checks]


def _list_settings_checks(
    settings: RefreshSettings,
) -> Iterator[tuple[str, Callable[[], Finding]]]:
    yield "store", lambda: check_store(settings.store)
    for source in settings.sources:
        yield f"source {source.name}", lambda source=source: check_source(source)  # type: ignore[misc]
    yield "device", lambda: check_device(settings.execution.device)
    yield "model", lambda: check_model(settings.model)
    yield "model in memory", lambda: check_model_memory(settings.model, settings.execution)
    if settings.generation.backend is not Backend.transformers:
        yield "generation", lambda: check_backend(settings.generation.backend)
    if settings.benchmark.tasks:
        yield "benchmark", lambda: check_benchmark(settings.benchmark.tasks)
    for scorer in (settings.scorer, *settings.further_scorers):
        yield f"scorer {scorer.name}", lambda scorer=scorer: check_scorer(scorer)  # type: ignore[misc]
    if (cases := settings.scorer_quality.functional_cases) is not None:
        yield "functional cases", lambda: check_cases(cases)


def _attempt(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the finding
        found = str(error).strip() or type(error).__name__
        if isinstance(error, EigenShiftError):
            return Finding.fail(name, found)  # it says what to do
        remedy = "Set right what it names; if that is none of yours, please report it."
        return Finding.fail(name, f"{type(error).__name__}: {found}", remedy)


def check_python() -> Finding:
    """Whether this Python is supported."""
    first, beyond = PYTHON_VERSIONS
    is_fine = first <= sys.version_info[:2] < beyond
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if is_fine:
        return Finding.fine("Python", detail)
    remedy = f"Install into a Python from {_join(first)} up to, not including, {_join(beyond)}."
    return Finding.fail("Python", detail, remedy)


def check_packages() -> Finding:
    """Whether the packages that shape results are there."""
    versions = describe_versions()
    wanted = ("torch", "transformers", "duckdb", "pyarrow", "prefect", "detoxify")
    missing = [name for name in wanted if name not in versions]
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        detail += f"; missing: {', '.join(missing)}"
        return Finding.fail("packages", detail, "pip install eigenshift")
    return Finding.fine("packages", detail)


def _bind_pair(pair: BadPair) -> Callable[[], Finding]:
    return lambda: check_pair(pair, _find_version(pair.package), _find_version(pair.other))


def check_pair(pair: BadPair, version: str | None, other: str | None) -> Finding:
    """Whether two installed versions are known not to work together."""
    name = f"{pair.package} and {pair.other}"
    detail = f"{pair.package} {version or 'not installed'}, {pair.other} {other or 'not installed'}"
    if version is None or other is None:
        return Finding.fine(name, detail)
    is_bad = (
        _parse_version(version)[: len(pair.release)] == pair.release
        and _parse_version(other) >= pair.from_version
    )
    if is_bad:
        remedy = f"pip install '{pair.other}<{_join(pair.from_version)}'"
        return Finding.fail(name, f"{detail}: {pair.consequence}", remedy)
    return Finding.fine(name, detail)


def check_processor() -> Finding:
    """How many cores this process may use."""
    return Finding.fine("processor", f"{count_cores()} cores")


def check_memory() -> Finding:
    """Memory free for a run."""
    free = measure_free_memory()
    if free is None:
        return Finding.fine("memory", "unknown on this system")
    detail = f"{_show_bytes(free)} available"
    if free < MIN_MEMORY_BYTES:
        remedy = f"End other programs: the demo takes about {_show_bytes(MIN_MEMORY_BYTES)}."
        return Finding.warn("memory", detail, remedy)
    return Finding.fine("memory", detail)


def check_gpu() -> Finding:
    """Which GPU there is; none is fine too."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding.fine("GPU", f"{name}, {_show_bytes(free)} of {_show_bytes(total)} free")
    if torch.backends.mps.is_available():
        return Finding.fine("GPU", "Apple GPU, not used (no float64); everything runs on the CPU")
    return Finding.fine("GPU", "none; everything runs on the CPU, large models slowly")


def check_disk(folder: Path) -> Finding:
    """Space left where the store would be by default."""
    free = shutil.disk_usage(folder).free
    detail = f"{_show_bytes(free)} free in {folder}"
    if free < MIN_FREE_BYTES:
        return Finding.warn("disk", detail, MAKE_ROOM)
    return Finding.fine("disk", detail)


def check_hub(settings: RefreshSettings | None) -> Finding:
    """Whether the Hugging Face hub answers; it is not asked where nothing is to come from it.

    Args:
        settings: Of the run to come, or None: then it is asked.
    """
    if settings is not None and not (names := list_on_hub(settings)):
        return Finding.fine("hub", "not needed and not asked: everything named is in folders")
    what = "" if settings is None else f" (for {', '.join(names)})"
    if constants.HF_HUB_OFFLINE:
        detail = f"offline by HF_HUB_OFFLINE; folders and what is cached work{what}"
        if settings is None:
            return Finding.fine("hub", detail)
        return Finding.warn("hub", detail, "Unset it where something is not in the cache yet.")
    answer, status = ask_server(constants.ENDPOINT)
    detail = f"{constants.ENDPOINT}: {answer}{what}"
    if status is not None:
        return Finding.fine("hub", detail)
    remedy = "Check the network, a proxy and HF_ENDPOINT; or give folders instead."
    return Finding.warn("hub", detail, remedy)


def list_on_hub(settings: RefreshSettings) -> list[str]:
    """What the settings take from the hub, or from its cache here."""
    judges = [
        judge
        for scorer in (settings.scorer, *settings.further_scorers)
        for judge in (scorer, *scorer.for_languages)
    ]
    found = {settings.model.id: "model"}
    found |= {
        judge.model: f"scorer {judge.name}"
        for judge in judges
        if judge.kind is ScorerKind.classifier and judge.model is not None
    }
    found |= {
        source.uri: f"source {source.name}"
        for source in settings.sources
        if source.format is SourceFormat.huggingface
    }
    names = [name for place, name in found.items() if _is_hub_name(place)]
    # Detoxify's tokenizer is the hub's unless there is a folder with it.
    return names + [
        f"scorer {judge.name}"
        for judge in judges
        if judge.kind is ScorerKind.detoxify and judge.config_folder is None
    ]


def _is_hub_name(place: str) -> bool:
    return HUB_ID.fullmatch(place) is not None and not is_folder(place)


def check_store(url: str) -> Finding:
    """Whether objects can be written and read back; a local folder is not made for that."""
    require_writable(url)
    store = Store(url)
    if not store.is_local:
        return Finding.fine("store", f"{store.root}: writable")
    folder = store.local_path(".")
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(parent).free
    found = "writable" if folder == parent else f"not there yet; {parent} is writable"
    detail = f"{folder}: {found}, {_show_bytes(free)} free"
    if free < MIN_FREE_BYTES:
        return Finding.warn("store", detail, MAKE_ROOM)
    return Finding.fine("store", detail)


def check_source(source: SourceSettings) -> Finding:
    """Whether every file of a source is there, opens, and is of a kind that is read."""
    name = f"source {source.name}"
    if is_on_hub(source):
        return _check_hub_source(name, source)
    files = require_source(source)
    size = _show_bytes(sum(file.n_bytes for file in files))
    return Finding.fine(name, f"{source.uri}: {len(files)} file(s), {size}, readable")


def _check_hub_source(name: str, source: SourceSettings) -> Finding:
    """Whether a hub has a data set; where it does not answer, only the cache can have it."""
    commit = resolve_commit(source)
    if commit is None:
        return Finding.warn(
            name,
            f"{source.uri}: the hub did not resolve it",
            "Check the id in `uri`, `revision` and the network; without it only what is cached "
            "here is read. Or give a folder.",
        )
    return Finding.fine(name, f"{source.uri}: on the hub at {commit}")


def check_device(device: str) -> Finding:
    """Whether the device in the settings is there."""
    return Finding.fine("device", f"{device}: runs on {resolve_device(device)}")


def check_backend(backend: Backend) -> Finding:
    """Whether the engine that is to generate is installed here; a cluster's workers need it too."""
    require_backend(backend)
    return Finding.fine("generation", f"{backend.value} {_find_version(backend.value)}")


def check_benchmark(tasks: Sequence[str]) -> Finding:
    """Whether the harness is installed and knows the tasks; a hub is not asked for questions."""
    require_tasks(tasks)
    return Finding.fine("benchmark", f"lm-eval {find_version()}: {', '.join(tasks)}")


def check_model(settings: ModelSettings) -> Finding:
    """Whether the model's files are here, whole, of a class that can be studied, or on the hub."""
    if _is_on_hub_only(settings.id, settings.revision):
        return _check_hub_model("model", settings.id, settings.revision)
    identity = identify_model(settings)
    class_name = find_class_name(identity)
    check_weight_names(identity)
    detail = (
        f"{settings.id}: complete in {identity.folder}, digest {identity.digest[:12]}, loads as "
        f"{class_name}"
    )
    return Finding.fine("model", detail)


def _check_hub_model(name: str, model_id: str, revision: str | None) -> Finding:
    """Whether the hub has a model that is not here."""
    try:
        client = huggingface_hub.HfApi()
        found = client.model_info(model_id, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        return Finding.fail(
            name,
            f"{model_id}: not in the cache here, and the hub: {type(error).__name__}",
            "Check the id and revision, the network, and HF_TOKEN for gated models; or give a "
            "folder.",
        )
    detail = f"{model_id}: on the hub at {found.sha}, not here; the first run downloads it"
    return Finding.warn(name, detail, f"{FASTER_FIRST} {model_id}")


def check_model_memory(settings: ModelSettings, placement: Placement) -> Finding:
    """Whether the weights fit into the memory of the device, or what of them is where, roughly."""
    name = "model in memory"
    if placement.device_map is not None:
        return check_division(settings, placement)
    if _is_on_hub_only(settings.id, settings.revision):
        return Finding.warn(
            name, "unknown until the model is downloaded", f"{FASTER_FIRST} {settings.id}"
        )
    identity = identify_model(settings)
    paths = [identity.folder / name for name in identity.files if name.endswith(".safetensors")]
    needed = int(MEMORY_FACTOR * estimate_weights(paths, settings))
    place = resolve_device(placement.device)
    free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else measure_free_memory()
    detail = f"needs about {_show_bytes(needed)} as {settings.dtype}"
    if free is None:
        return Finding.fine(name, detail)
    detail += f", {_show_bytes(free)} available on {place}"
    if needed > free:
        remedy = f"Set model.dtype: bfloat16, use a larger machine, or {_suggest(settings)}."
        return Finding.fail(name, detail, remedy)
    return Finding.fine(name, detail)


def check_division(settings: ModelSettings, placement: Placement) -> Finding:
    """What of a divided model is where, told from its configuration alone.

    Of a model that is on the hub only, its configuration is fetched, and nothing else.
    """
    folder = None
    if _is_on_hub_only(settings.id, settings.revision):
        found = huggingface_hub.hf_hub_download(
            settings.id, "config.json", revision=settings.revision
        )
        folder = Path(found).parent
    division = find_division(settings, placement, folder)
    short = [
        show_place(place)
        for place, n_bytes in division.n_bytes.items()
        if (free := _measure_free(place)) is not None and n_bytes > free
    ]
    detail = f"as {settings.dtype}: {_describe_places(division)}"
    if short:
        return Finding.fail(
            "model in memory",
            f"{detail}; too much on {', '.join(short)}",
            "Move modules in execution.device_map, or set it to auto.",
        )
    kept = [show_place(p) for p in sorted(division.n_bytes, key=str) if division.is_offloaded(p)]
    if kept and not division.is_whole:
        return Finding.warn(
            "model in memory",
            f"{detail}; read from {' and '.join(kept)} in every pass, which is slow",
            "Use more or larger GPUs, or model.dtype: bfloat16, where that is too slow.",
        )
    return Finding.fine("model in memory", detail)


def _suggest(settings: ModelSettings) -> str:
    """What dividing a model that does not fit would bring."""
    suggestion = "execution.device_map: auto"
    try:
        division = find_division(settings, Placement(device_map="auto"))
    except (ModelError, SettingsError) as error:
        return f"{suggestion}, which does not work yet: {error}"
    return f"{suggestion} ({_describe_places(division)})"


def _describe_places(division: Division) -> str:
    places = sorted(division.n_bytes, key=str)
    return "; ".join(_describe_place(division, place) for place in places)


def _describe_place(division: Division, place: Place) -> str:
    names = [name for name, other in division.places.items() if other == place]
    free = _measure_free(place)
    limit = "" if free is None else f" of {_show_bytes(free)} free"
    size = _show_bytes(division.n_bytes[place])
    return f"{show_place(place)} {size}{limit} ({show_modules(names)})"


def _measure_free(place: Place) -> int | None:
    """Bytes free at a place; of files nobody knows which disk, and weights are there already."""
    if isinstance(place, int):
        return int(torch.cuda.mem_get_info(place)[0])
    return measure_free_memory() if place == CPU else None


def estimate_weights(paths: Sequence[Path], settings: ModelSettings) -> int:
    """Bytes of the weights at the precision of the settings, from the files' headers."""
    total = 0
    for path in paths:
        with safe_open(str(path), framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is not iterable
                entry = file.get_slice(key)
                count = 1
                for length in entry.get_shape():
                    count *= length
                stored = STORED_BYTES.get(entry.get_dtype(), 1)
                total += count * BYTES_PER_VALUE.get(settings.dtype, stored)
    return total


def check_scorer(settings: ScorerSettings) -> Finding:
    """Whether a scorer's files are here and it loads; hub downloads are only announced."""
    name = f"scorer {settings.name}"
    for judge in (settings, *settings.for_languages):
        require_scorer(judge)
    if settings.kind is ScorerKind.detoxify and settings.checkpoint is None:
        url = refuse_download(settings)
        if url is not None:
            return Finding.warn(
                name,
                f"Detoxify {settings.model_type!r}: not here; the first run downloads it from "
                f"{url}",
                "Run where the network is, or set scorer.checkpoint and scorer.config_folder to "
                "local copies.",
            )
    takes_model = settings.kind in (ScorerKind.classifier, ScorerKind.judge)
    if takes_model and _is_on_hub_only(settings.model or "", settings.revision):
        return _check_hub_model(name, settings.model or "", settings.revision)
    scorer = load_scorer(settings, "cpu", 1)
    place = settings.checkpoint or settings.model or settings.words or settings.model_type
    detail = f"{place}: loads as {settings.kind.value}, {scorer.digest[:12]}"
    if settings.kind is ScorerKind.linear:
        quality = read_quality(fetch_path(settings.model or ""))
        detail += f"; {describe_quality(quality)}" if quality is not None else ""
    return Finding.fine(name, detail)


def check_cases(uri: str) -> Finding:
    """Whether the functional cases can be read."""
    cases = read_cases(uri)
    n_functionalities = len({case.functionality for case in cases})
    detail = f"{uri}: {len(cases)} cases of {n_functionalities} functionalities"
    return Finding.fine("functional cases", detail)


def _is_on_hub_only(model_id: str, revision: str | None) -> bool:
    """Whether a model is neither a folder nor in the hub's local cache."""
    if not _is_hub_name(model_id):
        return False
    try:
        huggingface_hub.snapshot_download(model_id, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return True
    return False


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _join(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _show_bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
