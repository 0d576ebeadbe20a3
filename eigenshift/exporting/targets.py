"""What becomes of a changed output head in tools that load a merged export other than transformers.

A head that was the input embedding has a tensor of its own in an export. Not every tool has a place
for one: some leave it out without a word, and the model is the base again. Trunk and norms keep
their names and shapes, so patches of those survive wherever the base does. The table below was
made by converting tiny models and by reading the loaders (docs/exports.md says which versions); it
loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from eigenshift.base.errors import ModelError
from eigenshift.settings import ExportTarget


class Fate(str, Enum):
    """What a tool does with a head that is not the input embedding."""

    kept = "kept"
    unless_padded = "kept; refused where the head has more rows than the tokenizer has tokens"
    refused = "refused"
    lost = "lost without a word"
    unsupported = "the tool does not know the architecture"


HEAD_FATES: Mapping[ExportTarget, Mapping[str, Fate]] = {
    ExportTarget.gguf: {
        **dict.fromkeys(
            (
                *("apertus", "arcee", "bloom", "ernie4_5", "exaone4", "falcon", "falcon_h1"),
                *("gemma3n_text", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "granite"),
                *("granitemoe", "hunyuan_v1_dense", "lfm2", "llama", "mamba", "mamba2", "mistral"),
                *("mixtral", "nemotron", "olmo", "olmo2", "olmoe", "phi", "phi3", "qwen2"),
                *("qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm"),
                "starcoder2",
            ),
            Fate.kept,
        ),
        **dict.fromkeys(("gemma3", "gemma3_text"), Fate.unless_padded),
        **dict.fromkeys(("bitnet", "cohere", "cohere2"), Fate.refused),
        **dict.fromkeys(("gemma", "gemma2"), Fate.lost),
        **dict.fromkeys(("gptj", "opt"), Fate.unsupported),
    },
    ExportTarget.vllm: {
        **dict.fromkeys(
            (
                *("apertus", "arcee", "bloom", "ernie4_5", "exaone4", "falcon", "falcon_h1"),
                *("gemma", "gemma3", "gemma3_text", "glm4", "gpt2", "gpt_bigcode", "gpt_neox"),
                *("gptj", "granite", "granitemoe", "hunyuan_v1_dense", "llama", "mamba", "mamba2"),
                *("mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmoe", "opt", "phi"),
                *("phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3"),
                *("stablelm", "starcoder2"),
            ),
            Fate.kept,
        ),
        **dict.fromkeys(("gemma2", "gemma3n_text"), Fate.refused),
        **dict.fromkeys(("cohere", "cohere2"), Fate.lost),
        **dict.fromkeys(("mpt",), Fate.unsupported),
    },
    ExportTarget.sglang: {
        **dict.fromkeys(
            (
                *("apertus", "arcee", "exaone4", "falcon_h1", "glm4", "gptj", "granite"),
                *("granitemoe", "hunyuan_v1_dense", "lfm2", "llama", "mamba2", "mistral"),
                *("mixtral", "olmo", "olmo2", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe"),
                *("qwen3", "qwen3_moe", "stablelm", "starcoder2"),
            ),
            Fate.kept,
        ),
        **dict.fromkeys(
            (
                *("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gpt2"),
                "gpt_bigcode",
            ),
            Fate.lost,
        ),
    },
}
"""Tool -> model type as in config.json -> what becomes of a head of its own there."""
NAMES = {
    ExportTarget.gguf: "GGUF (llama.cpp)",
    ExportTarget.vllm: "vLLM",
    ExportTarget.sglang: "SGLang",
}
REASONS = {
    (ExportTarget.gguf, Fate.lost): (
        "the public converter leaves that tensor out, and what is converted is the base again"
    ),
    (ExportTarget.gguf, Fate.refused): "the public converter has no name for that tensor and fails",
    (ExportTarget.vllm, Fate.lost): (
        "vLLM drops that tensor and takes the input embedding: what is served is the base again"
    ),
    (ExportTarget.vllm, Fate.refused): "vLLM has no place for that tensor and fails",
    (ExportTarget.sglang, Fate.lost): (
        "SGLang skips that tensor and takes the input embedding: what is served is the base again"
    ),
}
REMEDIES = {
    ExportTarget.gguf: "Run the export with transformers",
    ExportTarget.vllm: "Start vLLM with --model-impl transformers, which has a head of its own",
    ExportTarget.sglang: "Start SGLang with --model-impl transformers, which has a head of its own",
}


def find_fate(target: ExportTarget, model_type: str) -> Fate | None:
    """What a tool does with a head of its own; None where nobody has looked."""
    return HEAD_FATES[target].get(model_type)


def list_losses(model_type: str) -> Iterator[str]:
    """Say where a changed head does not arrive, and what to do instead, a sentence or two each."""
    for target in ExportTarget:
        reason = REASONS.get((target, find_fate(target, model_type) or Fate.kept))
        if reason is not None:
            yield f"{NAMES[target]}: {reason}. {REMEDIES[target]}."


def require_survival(model_type: str, target: ExportTarget, arms: Sequence[str]) -> None:
    """Refuse an export for a tool in which a changed head would not arrive.

    Args:
        model_type: Of the base's configuration.
        target: The tool.
        arms: Those of the run whose patches leave the head alone.

    Raises:
        ModelError: It would not, or nobody has looked.
    """
    fate = find_fate(target, model_type)
    if fate in (Fate.kept, Fate.unless_padded):
        return
    found = f"a patch of the output head of a {model_type!r} model"
    if fate is None:
        raise ModelError(
            f"--target {target.value}: expected an architecture it is known of (docs/exports.md), "
            f"found {found}. Leave --target out, and look for the head in what the tool has loaded."
        )
    reason = REASONS.get((target, fate), f"{NAMES[target]} does not know that architecture")
    other = f", or export {' or '.join(arms)} (--arm), which leaves the head alone" if arms else ""
    raise ModelError(
        f"--target {target.value}: expected a patch that arrives in {NAMES[target]}, found "
        f"{found}; {reason}. {REMEDIES[target]}{other}. Without --target it is written as it is."
    )


def describe_targets(model_type: str, *, changes_head: bool) -> str:
    """The card's part on other tools."""
    lines = ["## Other tools", ""]
    if not changes_head:
        lines.append("The output head is the base's, so what loads the base loads the patch.")
        return "\n".join([*lines, ""])
    lines += ["The output head is changed and has a tensor of its own. Not every tool has one:", ""]
    for target in ExportTarget:
        fate = find_fate(target, model_type)
        said = "not known for this architecture" if fate is None else fate.value
        reason = REASONS.get((target, fate)) if fate is not None else None
        more = f"; {reason}. {REMEDIES[target]}." if reason is not None else ""
        lines.append(f"- {NAMES[target]}: {said}{more}")
    return "\n".join([*lines, ""])
