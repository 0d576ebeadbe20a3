"""Export a run's patch as a folder: the patch itself, a LoRA, a whole model.

Reads a run and its patch; `lora` and `merged` also read the files of the base model the run was
about, and refuse any other. The folder is written beside its place and renamed at the end, so it
is there whole or not at all. How weights change is `folding.py`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigenshift.base.errors import ArtifactError, FoldingError, ModelError, SettingsError
from eigenshift.exporting import lora, merged
from eigenshift.exporting.adapter_targets import describe_serving
from eigenshift.exporting.base_files import PatchedBase, UnmatchedParameterError, open_patched_base
from eigenshift.exporting.cards import CardFacts, name_base, read_licence, write_card
from eigenshift.exporting.checks import check_files, check_reloaded, measure_patched
from eigenshift.exporting.hub import check_repository_name, push_export
from eigenshift.exporting.patch_files import USAGE, write_patch_files
from eigenshift.exporting.targets import describe_targets, list_losses, require_survival
from eigenshift.ledger.holdings import require_holdings
from eigenshift.ledger.releases import Release, list_releases
from eigenshift.ledger.runs import BENCHMARKS_KIND, RunRecord, choose_run, find_benchmarked
from eigenshift.model.files import ModelIdentity, identify_model
from eigenshift.model.loading import LanguageModel, forget_models, load_model
from eigenshift.patches.patching import Patch, open_patch, require_in_weights
from eigenshift.settings import (
    ExportCheck,
    ExportFormat,
    ExportTarget,
    ModelSettings,
    parse_settings,
)
from eigenshift.stages import tables
from eigenshift.store.artifacts import ArtifactStore
from eigenshift.store.manifests import ArtifactReference
from eigenshift.store.output_folder import writing_folder
from eigenshift.store.storage import Store
from eigenshift.upkeep import reproduction
from eigenshift.upkeep.reproduction import Reproduction

logger = logging.getLogger(__name__)

FORMATS = tuple(item.value for item in ExportFormat)
EXPORTED_COMMANDS = ("refresh", "compare")
FULL_CHECK_BYTES = 4_000_000_000
"""Weights above this are checked by their files unless asked otherwise."""


@dataclass(frozen=True)
class ExportOptions:
    """What may be chosen about an export besides its format.

    Attributes:
        arm: Which of the run's patches; None is the one that was judged.
        unties: With `lora`, write the base with a head of its own beside the adapter if it is tied.
        check: Of `merged`: load it back beside the base ("full"), compare its files with the
            base's ("files"), or the first for models up to 4 GB and the second beyond ("auto").
        targets: Of `merged` and `lora`: other tools it is for; a patch that does not arrive there
            is refused, where it is only warned of otherwise.
        push: owner/name of a repository on the hub to push to, or None.
        is_public: Of a repository that is made for it.
    """

    arm: str | None = None
    unties: bool = False
    check: ExportCheck = ExportCheck.auto
    targets: tuple[ExportTarget, ...] = ()
    push: str | None = None
    is_public: bool = False


DEFAULTS = ExportOptions()


@dataclass(frozen=True)
class _Source:
    """The run, its patch and the base it is about."""

    record: RunRecord
    patch: Patch
    settings: ModelSettings
    identity: ModelIdentity

    @property
    def folder(self) -> Path:
        return self.identity.folder


def export_patch(
    store_url: str,
    run_id: str | None,
    format: str,
    out: Path,
    options: ExportOptions = DEFAULTS,
) -> Path:
    """Write an export.

    Args:
        store_url: Root URL of the store.
        run_id: A run; by default that of the release in force. Of any other run a warning is
            logged.
        format: "patch" (the patch's own files), "lora" (a PEFT adapter) or "merged" (a model).
        out: New or empty folder.
        options: Further choices.

    Returns:
        The folder.

    Raises:
        SettingsError: The run, arm or format is not fit for it, or the folder is not empty.
        ModelError: The base model is not the run's, its head cannot take a LoRA, or the export did
            not load back as it was.
        FoldingError: The patch has no place in the weights.
        StorageError: The export is written, but the hub did not take it.
    """
    if format not in FORMATS:
        raise SettingsError(
            f"--format: expected one of {', '.join(FORMATS)}, found {format!r}. Choose one of "
            "these."
        )
    if options.targets and format == ExportFormat.patch.value:
        raise SettingsError(
            f"--target {options.targets[0].value}: expected --format merged or lora, found "
            f"{format}. What other tools load is a model or an adapter; export one of them."
        )
    if options.push is not None:
        check_repository_name(options.push)
    artifacts = ArtifactStore(store_url)
    released = _list_in_force(artifacts.store)
    record = choose_run(artifacts.store, run_id or _choose_released(artifacts.store, released))
    arm = options.arm or record.judged
    reference = _find_patch(record, arm)
    if all(release.patch != reference for release in released):
        logger.warning(
            "run %s (%s): its patch %s is not in force; it was held, rolled back, replaced or "
            "never judged by the gate",
            record.run_id,
            record.status,
            arm,
        )
    artifact = artifacts.open(reference)
    patch = open_patch(artifact)
    with writing_folder(out) as folder:
        licence: dict[str, str] = {}
        changed: dict[str, str] = {}
        usage = USAGE
        if format == "patch":
            settings = parse_settings(record.settings, "run settings").model
            write_patch_files(artifact, folder, name_base(settings))
        else:
            source = _find_source(record, patch)
            licence = read_licence(source.folder)
            if format == "lora":
                usage = _write_lora(source, folder, options)
            else:
                usage, changed = _write_merged(source, folder, options, artifacts)
        rows = _read_rows(artifacts, record)
        benchmarks = _read_benchmarks(artifacts, record, arm)
        repeated = _write_reproduction(artifacts, record, folder)
        quality = _read_quality(artifacts, record)
        facts = CardFacts(
            record, patch, arm, rows, format, licence, changed, benchmarks, repeated, quality
        )
        write_card(facts, usage, folder)
    if options.push is not None:
        push_export(out, options.push, is_private=not options.is_public)
    return out


def _list_in_force(store: Store) -> list[Release]:
    """Releases in force that have a patch, one for each model."""
    newest = {release.model_id: release for release in list_releases(store)}
    return [release for release in newest.values() if release.patch is not None]


def _choose_released(store: Store, released: Sequence[Release]) -> str:
    """The run of the one release in force."""
    if len(released) == 1:
        return released[0].run_id
    if not released:
        require_holdings(store)
    models = ", ".join(release.model_id for release in released)
    found = f"those of several models ({models})" if released else "no patch in force"
    raise SettingsError(
        f"{store.root}: expected one release in force to export, found {found}. Name a run with "
        "--run, see `eigenshift runs`; the patch of a run that was held or rolled back is "
        "for study only."
    )


def _find_patch(record: RunRecord, arm: str) -> ArtifactReference:
    if record.command not in EXPORTED_COMMANDS:
        raise SettingsError(
            f"run {record.run_id}: expected a {' or '.join(EXPORTED_COMMANDS)}, found a "
            f"{record.command}. Choose another with --run."
        )
    try:
        return record.find_artifact("patch", label=arm)
    except ArtifactError as error:
        labels = {use.label for use in record.artifacts if use.kind == "patch" and use.label}
        raise SettingsError(
            f"run {record.run_id}: expected a patch of arm {arm!r}, found "
            f"{', '.join(sorted(labels)) or 'none'}. Choose an arm with --arm, or another run."
        ) from error


def _find_source(record: RunRecord, patch: Patch) -> _Source:
    """The base model a run was about.

    Raises:
        ModelError: What is found under its name now is another one.
        FoldingError: The patch has no place in its weights.
    """
    if patch.description.obstacle is not None:
        raise FoldingError(patch.description.obstacle)
    settings = parse_settings(record.settings, "run settings").model
    identity = identify_model(settings)
    if identity.digest != record.model_digest:
        raise ModelError(
            f"{settings.id}: expected the model of run {record.run_id} (digest "
            f"{(record.model_digest or 'unknown')[:12]}), found digest {identity.digest[:12]}. Its "
            "files were changed since. Restore them, or start a refresh of the model as it is now."
        )
    return _Source(record, patch, settings, identity)


def _read_rows(artifacts: ArtifactStore, record: RunRecord) -> list[dict[str, Any]]:
    """The run's evaluation, none if it ended before."""
    if not any(use.kind == "evaluation" for use in record.artifacts):
        return []
    table = artifacts.open(record.find_artifact("evaluation")).read_table("evaluations.parquet")
    return list(table.to_pylist())


def _read_benchmarks(artifacts: ArtifactStore, record: RunRecord, arm: str) -> list[dict[str, Any]]:
    """What benchmark questions told of the patch, in this run or later; none if none were put."""
    benchmarked = find_benchmarked(artifacts.store, record, arm)
    if benchmarked is None:
        return []
    artifact = artifacts.open(benchmarked.find_artifact(BENCHMARKS_KIND))
    return list(artifact.read_table(tables.BENCHMARKS.file).to_pylist())


def _write_reproduction(
    artifacts: ArtifactStore, record: RunRecord, folder: Path
) -> Reproduction | None:
    """Write what repeats the run, without places; None of a run that cannot be repeated."""
    if record.command not in reproduction.COMMANDS:
        return None
    try:
        found = reproduction.describe_run(artifacts, record).without_places()
    except ArtifactError as error:
        logger.warning("without %s: %s", reproduction.FILE_NAME, error)
        return None
    (folder / reproduction.FILE_NAME).write_bytes(found.encode())
    return found


def _read_quality(artifacts: ArtifactStore, record: RunRecord) -> list[dict[str, Any]]:
    """How well the run's scorers did, none if it did not measure them."""
    return [
        row
        for use in record.artifacts
        if use.kind == "scorer_quality"
        for row in artifacts.open(ArtifactReference(kind=use.kind, fingerprint=use.fingerprint))
        .read_table("scorer_quality.parquet")
        .to_pylist()
    ]


def _write_lora(source: _Source, folder: Path, options: ExportOptions) -> str:
    base = open_patched_base(source.folder, source.patch, source.settings.dtype)
    model_id = name_base(source.settings)
    rank = lora.write_lora(
        base, folder, model_id=model_id, unties=options.unties, targets=options.targets
    )
    has_own_base = (folder / lora.UNTIED_FOLDER).is_dir()
    served = f"<this folder>/{lora.UNTIED_FOLDER}" if has_own_base else model_id
    return f"{lora.describe_use(base)}\n{describe_serving(options.targets, rank, served)}"


def _write_merged(
    source: _Source, folder: Path, options: ExportOptions, artifacts: ArtifactStore
) -> tuple[str, dict[str, str]]:
    """Write and check; what the card says about use, and each changed parameter's digest."""
    require_in_weights(source.patch)
    dtype, patch = source.settings.dtype, source.patch
    base: PatchedBase | None = None
    try:
        base = open_patched_base(source.folder, patch, dtype)
    except UnmatchedParameterError as error:
        logger.warning("export is not streamed: the whole model is loaded. %s", error)
    if base is None:
        return _write_merged_in_memory(source, folder, options, artifacts)
    model_type, changes_head = base.skeleton.config.model_type, base.head_weight is not None
    if changes_head:
        _check_targets(source, model_type, options, artifacts)
    written = merged.write_merged(base, folder)
    is_small = base.checkpoint.n_bytes <= FULL_CHECK_BYTES
    if options.check is ExportCheck.full or (options.check is ExportCheck.auto and is_small):
        measured = measure_patched(_load_base(source), patch)
        forget_models()  # room for the copy that is loaded back
        check_reloaded(folder, measured, written, unties=base.unties)
    else:
        check_files(base, folder, written)
    usage = merged.describe_use(base, list(written), source.folder)
    return f"{usage}\n{describe_targets(model_type, changes_head=changes_head)}", written


def _write_merged_in_memory(
    source: _Source, folder: Path, options: ExportOptions, artifacts: ArtifactStore
) -> tuple[str, dict[str, str]]:
    forget_models()  # the model changed here must be nobody else's
    language_model = _load_base(source)
    forget_models()
    head_weight, model_type = (
        f"{language_model.head.name}.weight",
        language_model.model.config.model_type,
    )
    changes_head = head_weight in (source.patch.description.tensors or [head_weight])
    if changes_head:
        _check_targets(source, model_type, options, artifacts)
    measured = measure_patched(language_model, source.patch)
    written = merged.write_merged_in_memory(language_model, source.patch, source.folder, folder)
    unties = language_model.head.is_tied and changes_head
    del language_model
    check_reloaded(folder, measured, written, unties=unties)
    usage = merged.describe_use(None, list(written), source.folder)
    return f"{usage}\n{describe_targets(model_type, changes_head=changes_head)}", written


def _check_targets(
    source: _Source, model_type: str, options: ExportOptions, artifacts: ArtifactStore
) -> None:
    """Warn of tools in which a changed head does not arrive, or refuse those that were named."""
    if options.targets:
        arms = _list_headless_arms(artifacts, source.record)
        for target in options.targets:
            require_survival(model_type, target, arms)
    for loss in list_losses(model_type):
        logger.warning("this patch changes the output head; %s", loss)


def _list_headless_arms(artifacts: ArtifactStore, record: RunRecord) -> list[str]:
    """Arms of a run whose patches are in the weights of the trunk alone."""
    found = []
    for use in record.artifacts:
        if use.kind == "patch" and use.label is not None:
            patch = open_patch(artifacts.open(record.find_artifact("patch", label=use.label)))
            is_idle = not patch.description.tensors
            if patch.description.obstacle is None and not (is_idle or patch.edit.changes_head):
                found.append(use.label)
    return found


def _load_base(source: _Source) -> LanguageModel:
    return load_model(source.settings, device="cpu")
