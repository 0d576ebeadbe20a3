"""What a merged export needs: memory, time, files, on a checkpoint of several gigabytes.

A made-up Llama in bfloat16 (random head and embedding, zeros elsewhere), in shards, tied and not.
The streamed export and the check of its files, against loading the model with transformers,
patching and saving it. Every variant is a process of its own; its memory is the highest
resident set since everything was imported, less what was resident then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bars import at_most, publish  # noqa: E402 - started as a file

N_COMPONENTS = 64
N_LAYERS = 6
SIZES = {False: (128_256, 4_096), True: (8_192, 1_024)}
"""Small or not -> vocab, hidden."""
ROWS = 1_024
VARIANTS = ("stream", "memory")


def build_base(folder: Path, vocab: int, hidden: int, *, is_tied: bool) -> None:
    """Write configuration, shards, index and a patch that fits."""
    import torch
    from transformers import LlamaConfig

    from eigenshift.model.parameter_names import build_skeleton
    from eigenshift.model.weight_files import NewTensor, write_changed_file
    from eigenshift.patches.edits import HeadEdit, ModelEdit
    from eigenshift.patches.patching import Patch, PatchDescription, TensorChange, save_patch

    folder.mkdir()
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        tie_word_embeddings=is_tied,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def make_blocks(name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        for first in range(0, shape[0], ROWS):
            size = (min(ROWS, shape[0] - first), *shape[1:])
            is_random = name.endswith(("embed_tokens.weight", "lm_head.weight"))
            values = torch.randn(size, generator=generator) if is_random else torch.zeros(size)
            yield values.bfloat16()

    shards: dict[str, dict[str, NewTensor]] = {}
    for name, value in build_skeleton(folder).state_dict().items():
        if is_tied and name == "lm_head.weight":
            continue
        part = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        shape = tuple(value.shape)
        shards.setdefault(f"model-{part}.safetensors", {})[name] = NewTensor(
            torch.bfloat16, shape, lambda name=name, shape=shape: make_blocks(name, shape)
        )
    digests: dict[str, str] = {}
    for file, tensors in shards.items():
        digests |= write_changed_file(None, folder / file, tensors)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    v, _ = torch.linalg.qr(torch.randn(hidden, N_COMPONENTS, generator=generator).double())
    edit = ModelEdit(HeadEdit.scale_directions(v.numpy(), 0.0))
    base = digests["model.embed_tokens.weight" if is_tied else "lm_head.weight"]
    description = PatchDescription(
        intervention="eigenshift",
        factor=0.0,
        model_id="made up",
        model_digest="",
        base_digest=base,
        patched_digest="",
        tensors={"lm_head.weight": TensorChange(base=base, patched="")},
    )
    save_patch(Patch(description, edit, torch.zeros(N_COMPONENTS)), folder)


def run_variant(variant: str, folder: Path, out: Path) -> None:
    """Export, and print seconds and bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    from eigenshift.exporting.base_files import open_patched_base
    from eigenshift.exporting.checks import check_files
    from eigenshift.exporting.merged import write_merged
    from eigenshift.model.parameter_names import build_skeleton
    from eigenshift.patches.patching import load_patch

    patch = load_patch(folder / "patch.safetensors", folder / "patch.json")
    build_skeleton(folder)  # imports the architecture
    out.mkdir()
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    resident = read_status("VmRSS")
    started = time.perf_counter()
    seconds_of_check = 0.0
    if variant == "stream":
        base = open_patched_base(folder, patch, "bfloat16")
        written = write_merged(base, out)
        checked = time.perf_counter()
        peak_of_export = read_status("VmHWM")
        check_files(base, out, written)
        seconds_of_check = time.perf_counter() - checked
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        head = patch.edit.head.fold_weight(model.lm_head.weight)
        model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
        model.config.tie_word_embeddings = False
        model._tied_weights_keys, model.all_tied_weights_keys = None, {}
        model.save_pretrained(out)
        peak_of_export = read_status("VmHWM")
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - started - seconds_of_check, 2),
                "seconds_of_check": round(seconds_of_check, 2),
                "resident_before_mb": round(resident / 1e6, 1),
                "peak_of_export_mb": round((peak_of_export - resident) / 1e6, 1),
                "peak_with_check_mb": round((read_status("VmHWM") - resident) / 1e6, 1),
            }
        )
    )


def read_status(key: str) -> int:
    """Bytes of one line of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status: expected {key}, found none; this benchmark needs Linux")


def count_copied(folder: Path, out: Path) -> tuple[int, int]:
    """How many shards the base has, and how many the export has unchanged."""
    names = [path.name for path in folder.glob("model-*.safetensors")]
    same = [
        name
        for name in names
        if (out / name).is_file() and digest(folder / name) == digest(out / name)
    ]
    return len(names), len(same)


def digest(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def main() -> None:
    """Build, export in every way, publish."""
    parser = argparse.ArgumentParser(description="Benchmark of merged exports")
    parser.add_argument("--small", action="store_true", help="hundreds of megabytes, not gigabytes")
    parser.add_argument("--variant", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        variant, folder, out = arguments.variant
        run_variant(variant, Path(folder), Path(out))
        return
    vocab, hidden = SIZES[arguments.small]
    head_mb = vocab * hidden * 2 / 1e6
    document: dict[str, Any] = {"vocab": vocab, "hidden": hidden, "head_mb": round(head_mb, 1)}
    bars = []
    for is_tied in (False, True):
        kind = "tied" if is_tied else "untied"
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            build_base(root / "base", vocab, hidden, is_tied=is_tied)
            sizes = [path.stat().st_size for path in (root / "base").glob("*.safetensors")]
            found: dict[str, Any] = {"checkpoint_mb": round(sum(sizes) / 1e6, 1)}
            for variant in VARIANTS:
                command = [sys.executable, __file__, "--variant", variant]
                command += [str(root / "base"), str(root / variant)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[variant] = json.loads(done.stdout.splitlines()[-1])
                if variant == "stream":
                    found["shards"], found["shards_unchanged"] = count_copied(
                        root / "base", root / variant
                    )
        peak = found["stream"]["peak_with_check_mb"]
        document[kind] = found
        bars += [
            at_most(f"memory of the streamed export over the head's size, {kind}",
                    round(peak / head_mb, 4), 0.125),
            at_most(f"memory of the streamed export, MB, {kind}", peak, 128),
            at_most(f"shards written anew, {kind}", found["shards"] - found["shards_unchanged"],
                    0 if is_tied else 1),
        ]  # fmt: skip
    publish("export", document, bars, is_small=arguments.small)


if __name__ == "__main__":
    main()
