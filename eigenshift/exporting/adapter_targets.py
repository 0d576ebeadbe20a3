"""Whether tools that serve adapters take one: the rules of vLLM and SGLang, by their sources.

An adapter that PEFT loads is not always one that a server loads. Ranks have a bound, not every
class has a place for an adapter, and few have one on the head. Made by reading vLLM 0.33.0
(`vllm/lora/`, `embedding_modules` of the model classes) and SGLang 0.5.23 (`sglang/srt/lora/`);
neither is run. What becomes of a merged export there is `targets.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

from eigenshift.base.errors import ModelError
from eigenshift.exporting.targets import NAMES
from eigenshift.settings import ExportTarget

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be; an adapter's largest rank may be up to it."""
VLLM_MAX_VOCAB = 258_048


class Places(str, Enum):
    """Where a tool has adapters."""

    everywhere = "linear layers and head"
    layers = "linear layers"
    nowhere = "nowhere"


VLLM_PLACES: Mapping[str, Places] = {
    **dict.fromkeys(
        (
            *("apertus", "ernie4_5", "exaone4", "falcon_h1", "granite", "granitemoe", "lfm2"),
            *("llama", "mixtral", "nemotron", "phi3", "qwen3", "qwen3_moe"),
        ),
        Places.everywhere,
    ),
    **dict.fromkeys(
        (
            *("arcee", "cohere", "cohere2", "gemma", "gemma2", "gemma3", "gemma3_text", "glm4"),
            *("gpt_bigcode", "gpt_neox", "hunyuan_v1_dense", "mistral", "olmo", "olmo2", "olmoe"),
            *("opt", "phi", "qwen2", "qwen2_moe", "seed_oss", "smollm3", "starcoder2"),
        ),
        Places.layers,
    ),
    **dict.fromkeys(
        ("bloom", "falcon", "gemma3n_text", "gpt2", "gptj", "mamba", "mamba2", "stablelm"),
        Places.nowhere,
    ),
}
"""Model type as in config.json -> where its class in vLLM takes adapters."""
SGLANG_MODULES = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj"),
        *("in_proj", "lm_head"),
    }
)
"""Last names of modules that SGLang's adapters can be on, whatever the model."""


def choose_max_rank(rank: int) -> int | None:
    """The least `--max-lora-rank` of vLLM's that takes a rank, None if none does."""
    return next((bound for bound in VLLM_RANKS if bound >= rank), None)


def require_adapter(
    target: ExportTarget,
    model_type: str,
    ranks: Mapping[str, int],
    head_name: str,
    vocab: int,
) -> None:
    """Refuse an adapter that a tool would not load.

    Args:
        target: The tool.
        model_type: Of the base's configuration.
        ranks: Module -> rank.
        head_name: Of the output head's module.
        vocab: Rows of the head.

    Raises:
        ModelError: It would not, or nobody has looked.
    """
    if target is ExportTarget.gguf:
        reason: str | None = "adapters in GGUF were not looked into"
    elif target is ExportTarget.vllm:
        reason = _find_vllm_reason(model_type, ranks, head_name, vocab)
    else:
        others = [name for name in ranks if name.rpartition(".")[2] not in SGLANG_MODULES]
        reason = f"it has no adapter on {others[0]}" if others else None
    if reason is not None:
        raise ModelError(
            f"--target {target.value}: expected an adapter that {NAMES[target]} loads, found one "
            f"of a {model_type!r} model on {_describe(ranks)}; {reason}. Use --format merged, or "
            "leave --target out for an adapter that PEFT loads."
        )


def _find_vllm_reason(
    model_type: str, ranks: Mapping[str, int], head_name: str, vocab: int
) -> str | None:
    places = VLLM_PLACES.get(model_type)
    if places is None:
        return "whether that architecture takes adapters is not known"
    if places is Places.nowhere:
        return "its class there takes no adapters"
    if head_name in ranks and places is Places.layers:
        return "its class there takes adapters on linear layers, not on the head"
    if head_name in ranks and vocab > VLLM_MAX_VOCAB:
        return f"with adapters on the head it takes at most {VLLM_MAX_VOCAB} tokens, here {vocab}"
    if choose_max_rank(max(ranks.values())) is None:
        return f"its largest rank is {VLLM_RANKS[-1]}, here {max(ranks.values())}"
    return None


def _describe(ranks: Mapping[str, int]) -> str:
    names = list(ranks)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more modules"


def describe_serving(targets: Sequence[ExportTarget], rank: int, base: str) -> str:
    """The card's part on serving an adapter.

    Args:
        targets: Tools it was checked for.
        rank: The largest of its ranks.
        base: What it is put on.
    """
    lines = [
        "## Serve",
        "",
        "The base may be served quantised; the adapter stays in full precision beside it, and",
        "`eigenshift survive` measures what is left of the patch then.",
        "",
    ]
    if ExportTarget.vllm in targets:
        lines += [
            f"    vllm serve {base} --enable-lora --max-lora-rank {choose_max_rank(rank)} \\",
            "        --lora-modules eigenshift=<this folder>",
            "",
        ]
    if ExportTarget.sglang in targets:
        lines += [
            f"    python -m sglang.launch_server --model-path {base} --enable-lora \\",
            f"        --max-lora-rank {rank} --lora-paths eigenshift=<this folder>",
            "",
        ]
    if not targets:
        lines += [
            "Servers have rules of their own for adapters; `--target vllm` or `--target sglang` at",
            "export checks them.",
            "",
        ]
    return "\n".join(lines)
