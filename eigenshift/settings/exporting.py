"""What may be chosen about an export; given on the command line, part of no run's settings."""

from __future__ import annotations

from enum import Enum


class ExportFormat(str, Enum):
    """What an export is: a model, an adapter, or the patch's own files."""

    merged = "merged"
    lora = "lora"
    patch = "patch"


class ExportTarget(str, Enum):
    """A tool other than transformers and PEFT that an export is for."""

    gguf = "gguf"
    vllm = "vllm"
    sglang = "sglang"


class ExportCheck(str, Enum):
    """How a merged export is compared with what was measured."""

    auto = "auto"
    full = "full"
    files = "files"


class BlockFormat(str, Enum):
    """A format of weights in GGUF files, as llama.cpp names it."""

    f16 = "f16"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q5_k = "q5_k"
    q5_1 = "q5_1"
    q5_0 = "q5_0"
    q4_k = "q4_k"
    q4_0 = "q4_0"


class Form(str, Enum):
    """How a patched model is served."""

    base = "base"
    """Without its patch."""
    merged = "merged"
    lora = "lora"
    """The patch as an adapter in full precision, beside the base."""
