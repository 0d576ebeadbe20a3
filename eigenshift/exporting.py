"""Export a run's patch as a folder that other tools load: the patch itself, a LoRA, a whole model.

Reads a refresh run and its patch; `lora` and `merged` also load the base model the run was about,
and refuse any other. The folder is written beside its place and renamed at the end, so it is there
whole or not at all. How weights change is `patching.py`'s.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from eigenshift.artifacts import Artifact, ArtifactReference, ArtifactStore
from eigenshift.errors import ArtifactError, ModelError, SettingsError
from eigenshift.evaluation.arms import PATCHED_ARM
from eigenshift.model_files import TOKENIZER_NAMES, ModelIdentity, identify_model
from eigenshift.models import LanguageModel, forget_models, load_model
from eigenshift.patching import (
    DESCRIPTION_NAME,
    TENSORS_NAME,
    Patch,
    apply_patch,
    compute_parameters,
    digest_tensor,
    open_patch,
)
from eigenshift.reporting import HEADLINE_COLUMNS, tabulate_headline
from eigenshift.runs import RunRecord, choose_run
from eigenshift.settings import parse_settings

README_NAME = "README.md"
N_CHECKED_SEQUENCES = 3
N_CHECKED_TOKENS = 12
LOGIT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
COARSE_TOLERANCE = 2e-2


def export_patch(store_url: str, run_id: str | None, format: str, out: Path) -> Path:
    """Write an export.

    Args:
        store_url: Root URL of the store.
        run_id: A refresh run; by default the latest that ended.
        format: "patch" (the patch's own files), "lora" (a PEFT adapter) or "merged" (a model).
        out: New or empty folder.

    Returns:
        The folder.

    Raises:
        SettingsError: The run or format is not fit for it, or the folder is not empty.
        ModelError: The base model is not the run's, its head cannot take a LoRA, or the export did
            not load back as it was.
    """
    writers: dict[str, Callable[[RunRecord, Artifact, Path], str]] = {
        "patch": _write_patch_files,
        "lora": _write_lora,
        "merged": _write_merged,
    }
    if format not in writers:
        raise SettingsError(
            f"--format: expected one of {', '.join(writers)}, found {format!r}. Choose one of "
            "these."
        )
    artifacts = ArtifactStore(store_url)
    record = choose_run(artifacts.store, run_id)
    reference = _find_patch(record)
    with _writing_folder(out) as folder:
        usage = writers[format](record, artifacts.open(reference), folder)
        text = describe_export(record, artifacts.open(reference), _read_rows(artifacts, record))
        (folder / README_NAME).write_text(f"{text}\n{usage}", encoding="utf-8")
    return out


def describe_export(record: RunRecord, artifact: Artifact, rows: list[dict[str, Any]]) -> str:
    """The README's part that all formats share: what it is, of what, how good, its limits."""
    facts = artifact.manifest.facts
    failed = [check["name"] for check in record.checks if not check["is_passed"]]
    warning = (
        f"\n**This run was held by the gate** ({'; '.join(failed) or record.status}): the patch "
        "was not released.\n"
        if record.status != "promoted"
        else ""
    )
    table = [list(HEADLINE_COLUMNS), ["---"] * len(HEADLINE_COLUMNS), *tabulate_headline(rows)]
    k, factor = facts["n_components"], facts["factor"]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in table)
    return f"""# {record.model_id}, patched by EigenShift {record.code_version}

A patch of the output head that multiplies its gain along {k} directions by {factor:g}, so that
toxic continuations become rarer. Nothing was trained.
{warning}
| | |
|---|---|
| base model | {record.model_id} |
| base model digest | `{record.model_digest}` |
| head before (sha256) | `{facts["base_digest"]}` |
| head after (sha256) | `{facts["patched_digest"]}` |
| run | `{record.run_id}` ({record.status}) |
| patch | `{artifact.manifest.fingerprint}` |

## Measured in this run

On the run's own prompts and neutral texts, same seeds in every arm; in brackets the bootstrap
interval. "Random components" damps as many others; "base again" is the base with other random
numbers.

{lines}

## Limits

The numbers hold for the run's prompts, languages, sampling and toxicity classifier, and no further.
The patch makes toxic text less likely; it does not make it impossible, and it is no substitute for
filtering. It fits the base model named above and no other, not even a fine-tuned copy.
"""


def _find_patch(record: RunRecord) -> ArtifactReference:
    if record.command != "refresh":
        raise SettingsError(
            f"run {record.run_id}: expected a refresh, found a {record.command}. Choose a refresh "
            "with --run."
        )
    try:
        return record.find_artifact("patch", label=PATCHED_ARM)
    except ArtifactError as error:
        raise SettingsError(str(error)) from error


def _read_rows(artifacts: ArtifactStore, record: RunRecord) -> list[dict[str, Any]]:
    """The run's evaluation, none if it ended before."""
    if not any(use.kind == "evaluation" for use in record.artifacts):
        return []
    table = artifacts.open(record.find_artifact("evaluation")).read_table("evaluations.parquet")
    return list(table.to_pylist())


@contextmanager
def _writing_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `out` if all goes well."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(
            f"{out}: expected a new or empty folder, found one with content (or a file). Choose "
            "another --out."
        )
    target = out.absolute()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError as error:
        raise SettingsError(
            f"{out}: expected to write a folder, found: {error.strerror or error}. Check the path, "
            "its permissions and the free space."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_patch_files(_: RunRecord, artifact: Artifact, folder: Path) -> str:
    for name in (TENSORS_NAME, DESCRIPTION_NAME):
        shutil.copyfile(artifact.fetch(name), folder / name)
    return f"""## Load

    from pathlib import Path
    from eigenshift.models import load_model
    from eigenshift.patching import load_patch, patched_model
    from eigenshift.settings import ModelSettings

    language_model = load_model(ModelSettings(id="<base model>"))
    patch = load_patch(Path("{TENSORS_NAME}"), Path("{DESCRIPTION_NAME}"))
    with patched_model(language_model, patch):
        ...

## Undo

Leave the `with` block: the base's own head is back, byte for byte. `apply_patch` patches for good.
"""


def _write_lora(record: RunRecord, artifact: Artifact, folder: Path) -> str:
    """A = V_k^T and B = -(1 - factor) W V_k, so that W + B A is the patched head."""
    patch = open_patch(artifact)
    language_model = _load_base(record)
    if language_model.head.is_tied:
        raise ModelError(
            f"{record.model_id}: expected an output head of its own, found one that shares its "
            "tensor with the input embedding. A LoRA on it would change the embedding too as soon "
            "as it is merged. Use --format merged, which gives the head a tensor of its own."
        )
    weight = language_model.head_module.weight
    changed = compute_parameters(language_model, patch)  # raises if it is for another head
    name, edit = language_model.head.name, patch.edit.head
    if edit is None or set(changed) != {f"{name}.weight"}:
        raise ModelError(
            f"{record.model_id}: expected a patch of the head's weight alone, found one of "
            f"{', '.join(changed)}. A LoRA holds no bias and no scaled units. Use --format merged."
        )
    k = edit.rank
    gain = -(weight.float() @ edit.left.float())
    save_file(
        {
            f"base_model.model.{name}.lora_A.weight": edit.right.T.float().contiguous(),
            f"base_model.model.{name}.lora_B.weight": gain.contiguous(),
        },
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    configuration = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": parse_settings(record.settings, "run settings").model.id,
        "r": k,
        "lora_alpha": k,
        "lora_dropout": 0.0,
        "target_modules": [name],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    text = json.dumps(configuration, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return """## Load

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("<base model>")
    model = PeftModel.from_pretrained(model, "<this folder>")

## Undo

`model.disable_adapter()` for a block, `model.unload()` for good.
"""


def _write_merged(record: RunRecord, artifact: Artifact, folder: Path) -> str:
    """Patch, save, load back, compare."""
    patch = open_patch(artifact)
    forget_models()  # the model changed here must be nobody else's
    language_model = _load_base(record)
    forget_models()
    identity = identify_model(parse_settings(record.settings, "run settings").model)
    embedding = _digest_embedding(language_model.model)
    apply_patch(language_model, patch)
    head = digest_tensor(language_model.head_module.weight)
    sequences = _choose_sequences(language_model.head.vocab, patch)
    logits = _compute_logits(language_model.model, sequences)
    dtype = language_model.head.dtype
    language_model.model.save_pretrained(folder)
    _copy_tokenizer(identity, folder)
    del language_model  # room for the copy that is loaded back
    _check_reloaded(folder, dtype, head, embedding, sequences, logits)
    return """## Load

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("<this folder>")
    tokenizer = AutoTokenizer.from_pretrained("<this folder>")

The head has a tensor of its own (`tie_word_embeddings: false`); the input embedding is the base's.

## Undo

Load the base model instead. Only the head differs.
"""


def _load_base(record: RunRecord) -> LanguageModel:
    """Load the model a run was about.

    Raises:
        ModelError: What is found under its name now is another one.
    """
    settings = parse_settings(record.settings, "run settings").model
    found = identify_model(settings).digest
    if found != record.model_digest:
        raise ModelError(
            f"{settings.id}: expected the model of run {record.run_id} (digest "
            f"{(record.model_digest or 'unknown')[:12]}), found digest {found[:12]}. Its files "
            "were changed since. Restore them, or start a refresh of the model as it is now."
        )
    return load_model(settings, device="cpu")


def _copy_tokenizer(identity: ModelIdentity, folder: Path) -> None:
    """The base's own tokenizer files, unchanged."""
    for path in sorted(identity.folder.iterdir()):
        if path.is_file() and (path.name in TOKENIZER_NAMES or path.suffix == ".tiktoken"):
            shutil.copyfile(path, folder / path.name)


def _choose_sequences(vocab: int, patch: Patch) -> Tensor:
    """Some token sequences, the same for the same patch, shape (batch, position)."""
    seed = int(patch.description.base_digest[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (N_CHECKED_SEQUENCES, N_CHECKED_TOKENS), generator=generator)


@torch.inference_mode()
def _compute_logits(model: Any, sequences: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=sequences, use_cache=False).logits
    return logits.clone()


def _digest_embedding(model: Any) -> str:
    return digest_tensor(model.get_input_embeddings().weight)


def _check_reloaded(
    folder: Path, dtype: torch.dtype, head: str, embedding: str, sequences: Tensor, logits: Tensor
) -> None:
    """Load an exported model back and compare head, input embedding, logits and configuration.

    Raises:
        ModelError: Something differs; the caller removes the folder.
    """
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False
    ).eval()
    found = _compute_logits(model, sequences)
    tolerance = LOGIT_TOLERANCE.get(dtype, COARSE_TOLERANCE)
    scale = logits.float().abs().max().clamp_min(1e-6)
    difference = float((found.float() - logits.float()).abs().max() / scale)
    differing = [
        name
        for name, is_equal in (
            ("the head", digest_tensor(model.get_output_embeddings().weight) == head),
            ("the input embedding", _digest_embedding(model) == embedding),
            ("the logits", difference <= tolerance),
            # transformers notices two different tensors by itself; other tools trust the setting
            ("tie_word_embeddings", not model.config.get_text_config().tie_word_embeddings),
        )
        if not is_equal
    ]
    if differing:
        raise ModelError(
            f"{type(model).__name__}: expected the exported model to load back as it was, found "
            f"that {' and '.join(differing)} differ (logits by {difference:.1e}). transformers "
            "ties or rewrites weights of this architecture on loading. Nothing was exported; use "
            "--format patch."
        )
